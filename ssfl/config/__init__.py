"""What a run is told: dataclasses, filled from conf/*.yaml and the command line, checked before anything runs.

The rest of the program sees plain frozen dataclasses only; nothing outside this package imports Hydra or
OmegaConf.
"""

from ssfl.config.errors import ConfigError, ConfigWarning
from ssfl.config.load import config_digest, config_from_yaml, config_to_yaml, load_config
from ssfl.config.schema import (
    AlgorithmConfig,
    AlgorithmParams,
    CheckpointConfig,
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
from ssfl.config.sweeps import sweep_cells
from ssfl.config.validate import cohort_size, fine_tune_epochs, validate

__all__ = [
    "AlgorithmConfig",
    "AlgorithmParams",
    "CheckpointConfig",
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
    "cohort_size",
    "config_digest",
    "config_from_yaml",
    "config_to_yaml",
    "fine_tune_epochs",
    "load_config",
    "sweep_cells",
    "validate",
]
