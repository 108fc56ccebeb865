"""The cells of a sweep (one run each), and their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from ssfl.config import ConfigError, ConfigWarning, combinations, config_digest, load_config
from ssfl.config.combinations import Combination


@final
@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep, as stored in its folder."""

    name: str  # folder and experiment name
    label: str  # the words that differ between cells
    overrides: tuple[str, ...]
    rounds: int


def cells_of(words: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Combination], list[str]]:
    """The cells of `words` combined with each of `lines`, and notes. Raises ConfigError for impossible values."""
    return _all_cells(words, lines) if lines else combinations(words)


def _all_cells(words: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Combination], list[str]]:
    """The cells of every line's product; labels include the line's own words; equal cells appear once."""
    cells: dict[str, Combination] = {}
    notes: list[str] = []
    for line in lines:
        fixed = " ".join(word for word in line if not _lists_values(word))
        try:
            found, found_notes = combinations([*words, *line])
        except ConfigError as error:
            if "nothing to sweep" not in str(error):
                raise
            with warnings.catch_warnings():  # an ignored key is normal here, as in a product
                warnings.simplefilter("ignore", ConfigWarning)
                found, found_notes = [Combination("", (*words, *line), load_config([*words, *line]))], []
        notes += found_notes
        for cell in found:
            label = f"{fixed} {cell.label}".strip()
            cells.setdefault(config_digest(cell.config), Combination(label, cell.overrides, cell.config))
    return list(cells.values()), notes


def _lists_values(word: str) -> bool:
    """Whether the word lists several values, so that labels contain its value anyway."""
    return any(sign in word for sign in (",", "range(", "choice("))


def cell_names(labels: Sequence[str]) -> list[str]:
    """A folder name per label: its values, with the last part of the key if the value alone is unclear."""
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
