"""The configuration of a run: dataclasses, filled from conf/*.yaml and the command line, validated before a run.

The rest of the program uses plain frozen dataclasses; no module outside this package imports Hydra or
OmegaConf.
"""

from ssfl.config.combinations import combinations
from ssfl.config.communication import PROFILES, Codecs, codecs_of
from ssfl.config.errors import ConfigError, ConfigWarning
from ssfl.config.keys import keys_of, unread_keys, value_of
from ssfl.config.load import (
    config_digest,
    config_from_yaml,
    config_to_yaml,
    deciding_values,
    load_config,
    read_config,
    stored_values,
)
from ssfl.config.overrides import parse_words
from ssfl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    CommunicationConfig,
    Config,
    DatasetConfig,
    EngineConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainingConfig,
    WandbConfig,
)
from ssfl.config.validate import cohort_size, fine_tune_epochs, validate

__all__ = [
    "PROFILES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Codecs",
    "CommunicationConfig",
    "Config",
    "ConfigError",
    "ConfigWarning",
    "DatasetConfig",
    "EngineConfig",
    "ExperimentConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrackingConfig",
    "TrainingConfig",
    "WandbConfig",
    "codecs_of",
    "cohort_size",
    "config_digest",
    "config_from_yaml",
    "config_to_yaml",
    "deciding_values",
    "fine_tune_epochs",
    "keys_of",
    "load_config",
    "parse_words",
    "read_config",
    "combinations",
    "stored_values",
    "unread_keys",
    "validate",
    "value_of",
]
