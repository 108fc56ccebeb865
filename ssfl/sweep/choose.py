"""`ssfl sweep --choose KEY --by METRIC`: the best value of a key for every setting, by accuracy on held-out rows.

All settings start with the same values. While the best value of any setting is its lowest or highest one, or none of
its runs finished, every setting gets one more trial: beyond the edge if its edge is best, below all if none finished,
else between its best value and the better neighbour. So all settings have the same number of trials.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl.config import ConfigError, load_config
from ssfl.config.combinations import Combination
from ssfl.report.runs.settings import best_run
from ssfl.report.studies.choice import (
    CHOICE,
    IMBALANCED,
    METRICS,
    RULES,
    By,
    Choice,
    Trial,
    trial_of,
    write_choice,
)
from ssfl.sweep.cells import SweepCell, cell_names

_SEED = "experiment.seed"


@final
@dataclass(frozen=True)
class Search:
    """The key to choose, and the accuracy that decides."""

    key: str
    by: By
    widenings: int = 4
    """Maximum number of additional trials per setting, after the listed values."""


def search_of(choose: str, by: str, cells: Sequence[Combination]) -> Search:
    """The requested search: `choose` is a key with several values, or its last part.

    Raises:
        ConfigError: there is no such key with several values, or no rows are held out for validation.
    """
    listed = sorted({key for cell in cells for key in _values(cell.overrides)})
    several = [key for key in listed if len({_values(c.overrides).get(key) for c in cells}) > 1]
    found = [key for key in several if choose in (key, key.rpartition(".")[2])]
    if len(found) != 1:
        raise ConfigError(
            "--choose", f"--choose {choose}: must be a key with several values: {', '.join(several)}"
        )
    without = next((cell.label for cell in cells if found[0] not in _values(cell.overrides)), None)
    if without is not None:
        raise ConfigError(
            "--choose", f"--choose {choose}: has no value in the line {without!r}; list its values there"
        )
    for metric in METRICS:
        if by == metric:
            break
    else:
        raise ConfigError("--by", f"--by {by}: must be one of {', '.join(METRICS)}")
    if any(cell.config.dataset.validation_portion <= 0 for cell in cells):
        raise ConfigError(
            "dataset.validation_portion",
            "dataset.validation_portion=0.0: no rows are held out for the choice; set it, for example to 0.1",
        )
    if metric in IMBALANCED and any(cell.config.tracking.metrics != "imbalanced" for cell in cells):
        raise ConfigError(
            "tracking.metrics", f"tracking.metrics=accuracy: --by {metric} needs tracking.metrics=imbalanced"
        )
    return Search(found[0], metric)


def judged(search: Search, folder: Path, cells: Sequence[SweepCell]) -> Choice:
    """All trials of the sweep's cells; settings in the order of their first cells."""
    grouped: dict[tuple[str, str], list[SweepCell]] = {}
    for cell in cells:
        value = _values(cell.overrides)[search.key]
        grouped.setdefault((_setting(cell.label, search.key), value), []).append(cell)
    trials: list[Trial] = []
    for (setting, value), members in grouped.items():
        runs = [best_run(folder / "runs" / cell.name) for cell in members]
        found = [run for run in runs if run is not None]
        trials.append(trial_of(setting, _number(value), found if len(found) == len(runs) else [], search.by))
    order = {setting: n for n, setting in enumerate(dict.fromkeys(t.setting for t in trials))}
    trials.sort(key=lambda t: (order[t.setting], t.value if isinstance(t.value, float) else 0.0))
    return Choice(search.key, search.by, RULES[search.by], tuple(trials))


def widened(search: Search, choice: Choice, cells: Sequence[SweepCell]) -> list[SweepCell]:
    """The cells, with one more trial of every setting if the grid of any is too narrow; else the same cells."""
    if not any(too_narrow(choice, setting) for setting in choice.settings()):
        return list(cells)
    following = {setting: next_value(choice, setting) for setting in choice.settings()}
    known = {cell.label for cell in cells}
    fresh: list[tuple[str, tuple[str, ...], int]] = []
    for cell in cells:
        value = following[_setting(cell.label, search.key)]
        label = "" if value is None else " ".join(_with(cell.label.split(" "), search.key, value))
        if value is not None and label not in known:
            known.add(label)
            overrides = tuple(_with(cell.overrides, search.key, value))
            rounds = load_config(overrides).training.comm_round  # also refuses an impossible value
            fresh.append((label, overrides, rounds))
    names = cell_names([cell.label for cell in cells] + [label for label, _, _ in fresh])
    added = [SweepCell(name, *rest) for name, rest in zip(names[len(cells) :], fresh)]
    return [*cells, *added]


def too_narrow(choice: Choice, setting: str) -> bool:
    """Whether a setting has several numbers, and the best one is the lowest or highest, or none has a score."""
    values, best = _numbers(choice, setting), choice.best().get(setting)
    return len(values) > 1 and (best is None or best.value in (values[0], values[-1]))


def next_value(choice: Choice, setting: str) -> float | None:
    """A setting's next trial: the next value of the geometric grid beyond its edge if that is best, else the geometric
    mean of the best value and its better neighbour; the next lower one if no trial has a score (large rates diverge);
    None if there is no grid."""
    values, best = _numbers(choice, setting), choice.best().get(setting)
    if len(values) < 2 or (best is not None and not isinstance(best.value, float)):
        return None
    at = 0 if best is None else values.index(float(best.value))
    if at == 0:
        return _round(values[0] ** 2 / values[1])
    if at == len(values) - 1:
        return _round(values[-1] ** 2 / values[-2])
    score = {t.value: t.score or 0.0 for t in choice.trials if t.setting == setting}
    other = max(values[at - 1], values[at + 1], key=lambda value: score[value])
    return _round(math.sqrt(values[at] * other))


def _numbers(choice: Choice, setting: str) -> list[float]:
    """The positive numbers among a setting's trials, ascending."""
    values = {t.value for t in choice.trials if t.setting == setting and isinstance(t.value, float)}
    return sorted(value for value in values if value > 0)


def keep(choice: Choice, folder: Path) -> None:
    """Write the record to the sweep's folder and print it; names the settings whose grid is still too narrow."""
    path = folder / CHOICE
    write_choice(choice, path)
    print(choice.table())
    for setting in choice.settings():
        if too_narrow(choice, setting):
            found = f"the best {choice.key} is at the edge of the tried values"
            problem = found if setting in choice.best() else f"no tried {choice.key} finished"
            print(f"note: {setting}: {problem}", file=sys.stderr)
    print(f"recorded: {path}")


def _setting(label: str, key: str) -> str:
    """A cell's label without the key and the seed."""
    return " ".join(w for w in label.split(" ") if w.partition("=")[0] not in (key, _SEED))


def _values(overrides: Sequence[str]) -> Mapping[str, str]:
    """The last value of each key."""
    return {key: value for key, _, value in (word.partition("=") for word in overrides)}


def _with(words: Sequence[str], key: str, value: float) -> list[str]:
    return [f"{key}={value:g}" if word.partition("=")[0] == key else word for word in words]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _round(value: float) -> float:
    """Round to two significant digits."""
    return round(value, 1 - math.floor(math.log10(value)))
