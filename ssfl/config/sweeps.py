"""Comma lists and ranges on the command line → the cells of a sweep."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, final

from ssfl.config.errors import ConfigError, ConfigWarning
from ssfl.config.load import config_digest, load_config
from ssfl.config.overrides import parse_words
from ssfl.config.schema import Config


@final
class Cell(NamedTuple):
    """One run of a sweep: its label (the swept words that it reads), all its words, its configuration."""

    label: str
    overrides: tuple[str, ...]
    config: Config


def sweep_cells(words: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """The product of all listed values, each cell checked; cells that would compute the same are run once.

    Args:
        words: as for `load_config`, but a value may be a list `a,b`, `range(1,4)` or `choice(a,b)`.

    Returns:
        The cells in the order of the product, and one line for each cell that was dropped as a duplicate.

    Raises:
        ConfigError: as `load_config`, and if no word lists several values.
    """
    axes = [_choices(word) for word in words]
    if all(len(axis) == 1 for axis in axes):
        example = "such as model.dense_ratio=0.5,0.1"
        raise ConfigError("sweep", f"nothing to sweep: give at least one key several values, {example}")
    swept = [len(axis) > 1 for axis in axes]
    cells: dict[str, Cell] = {}
    notes = []
    for overrides in itertools.product(*axes):
        config = _quiet_load(overrides)
        digest = config_digest(config)
        label = " ".join(word for word, varies in zip(overrides, swept) if varies and _read(word, config))
        if digest in cells:
            asked = " ".join(itertools.compress(overrides, swept))
            notes.append(f"{asked}: same as {cells[digest].label}, run once")
        else:
            cells[digest] = Cell(label, overrides, config)
    return list(cells.values()), notes


def _choices(word: str) -> list[str]:
    (override,) = parse_words([word])
    if not override.is_sweep_override():
        return [word]
    try:
        values = list(override.sweep_string_iterator())
    except Exception as error:  # Hydra raises several kinds here; all mean that the list cannot be read
        raise ConfigError(override.key_or_group, f"{word}: {error}") from None
    return [f"{override.key_or_group}={value}" for value in values]


def _quiet_load(overrides: Sequence[str]) -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConfigWarning
        )  # an ignored key is normal in a product; the notes say it
        return load_config(overrides)


def _read(word: str, config: Config) -> bool:
    key = word.partition("=")[0]
    return not any(fnmatchcase(key, pattern) for pattern in config.algorithm.ignores)
