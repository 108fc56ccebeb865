"""The cells of a sweep: which runs there are, and what they are called."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from ssfl.config import ConfigError, ConfigWarning, config_digest, load_config, sweep_cells
from ssfl.config.sweeps import Cell


@final
@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep as its folder remembers it."""

    name: str  # folder and experiment name
    label: str  # the words that make it different
    overrides: tuple[str, ...]
    rounds: int


def cells_of(words: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Cell], list[str]]:
    """The cells that `words`, with each of `lines` after them, stand for, and notes; ConfigError if impossible."""
    return _all_cells(words, lines) if lines else sweep_cells(words)


def _all_cells(words: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Cell], list[str]]:
    """The cells of every line's product, labelled with the line's own words too; equal ones once."""
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    for line in lines:
        fixed = " ".join(word for word in line if not _lists_values(word))
        try:
            found, said = sweep_cells([*words, *line])
        except ConfigError as error:
            if "nothing to sweep" not in str(error):
                raise
            with warnings.catch_warnings():  # an ignored key is normal here, as in a product
                warnings.simplefilter("ignore", ConfigWarning)
                found, said = [Cell("", (*words, *line), load_config([*words, *line]))], []
        notes += said
        for cell in found:
            label = f"{fixed} {cell.label}".strip()
            cells.setdefault(config_digest(cell.config), Cell(label, cell.overrides, cell.config))
    return list(cells.values()), notes


def _lists_values(word: str) -> bool:
    """Whether the product names the value itself."""
    return any(sign in word for sign in (",", "range(", "choice("))


def cell_names(labels: Sequence[str]) -> list[str]:
    """A folder name per label: values, with the last part of their key where a value alone says too little."""
    names: list[str] = []
    for label in labels:
        parts = []
        for word in label.split(" "):
            key, _, value = word.partition("=")
            last = key.rsplit(".", 1)[-1]
            parts.append(
                value if last in ("algorithm", "algorithm/mode", "preset", "name") else f"{last}{value}"
            )
        name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-.") or "cell"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names
