"""Setups of small runs on the digits data set."""

from __future__ import annotations

from ssfl.assemble.build import RunSetup, setup_of
from ssfl.config import Config, load_config

WORDS = (
    "preset=digits",
    "training.comm_round=2",
    "training.epochs=1",
    "training.client_num_in_total=4",
    "training.client_num_per_round=2",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "engine.block=1",
    "engine.device=cpu",
    "tracking.console=quiet",
)


def config(*words: str) -> Config:
    """A configuration with four clients on the digits, changed by `words`."""
    return load_config([*WORDS, *words])


def run_setup(*words: str) -> RunSetup:
    """Data, network and method of this configuration."""
    return setup_of(config(*words))
