"""Small runs' parts, on the digits that come with the program."""

from __future__ import annotations

from ssfl.assemble.build import Parts, parts_of
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
    """Four clients on the digits, with `words` on top."""
    return load_config([*WORDS, *words])


def parts(*words: str) -> Parts:
    """Their data, network and method."""
    return parts_of(config(*words))
