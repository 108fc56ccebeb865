"""Comma lists and ranges on the command line → the cells of a sweep."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple, final

from ssfl.config.errors import ConfigError, ConfigWarning
from ssfl.config.keys import other_methods_keys, unread_keys
from ssfl.config.load import config_digest, load_config
from ssfl.config.malformed import LISTS
from ssfl.config.overrides import parse_words
from ssfl.config.schema import Config

MOST_CELLS = 10_000
"""A longer product is taken for a mistake, such as range(0,1e9)."""


@final
class Combination(NamedTuple):
    """One run of a sweep: its label (the swept words that it reads), all its words, its configuration."""

    label: str
    overrides: tuple[str, ...]
    config: Config


def combinations(words: Sequence[str]) -> tuple[list[Combination], list[str]]:
    """The product of all listed values, each cell checked; cells with the same computation run once.

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
        raise ConfigError("sweep", f"nothing to sweep: at least one key needs several values, {example}")
    if math.prod(map(len, axes)) > MOST_CELLS:
        raise ConfigError("sweep", f"the lists multiply to more than {MOST_CELLS} runs; list fewer values")
    swept = [len(axis) > 1 for axis in axes]
    cells: dict[str, Combination] = {}
    notes = []
    for overrides in itertools.product(*axes):
        config = _quiet_load(overrides)
        digest = config_digest(config)
        label = " ".join(word for word, varies in zip(overrides, swept) if varies and _read(word, config))
        if digest in cells:
            asked = " ".join(itertools.compress(overrides, swept))
            notes.append(f"{asked}: same as {cells[digest].label}, run once")
        else:
            cells[digest] = Combination(label, overrides, config)
    return list(cells.values()), notes


def _choices(word: str) -> list[str]:
    (override,) = parse_words([word])
    if not override.is_sweep_override():
        return [word]
    key = override.key_or_group
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_CELLS + 1))
    except Exception:  # Hydra raises several kinds here; all mean that the list cannot be read
        raise ConfigError(key, f"{word}: not a list of values; allowed: {LISTS}") from None
    if not values:
        raise ConfigError(key, f"{word}: lists no value; allowed: {LISTS}, START below STOP")
    return [f"{key}={_without_escapes(value)}" for value in values]


def _without_escapes(value: str) -> str:
    """The value without Hydra's escapes of colons, if it means the same without them."""
    plain = value.replace("\\:", ":")
    if plain == value:
        return value
    with contextlib.suppress(ConfigError):
        (written,), (short,) = parse_words([f"key={value}"]), parse_words([f"key={plain}"])
        return plain if short.value() == written.value() else value
    return value


def _quiet_load(overrides: Sequence[str]) -> Config:
    with warnings.catch_warnings():
        # An ignored key is normal in a product; the notes say it.
        warnings.simplefilter("ignore", ConfigWarning)
        return load_config(overrides)


def _read(word: str, config: Config) -> bool:
    key = word.partition("=")[0]
    return key not in {*unread_keys(config), *other_methods_keys(config.algorithm.name)}
