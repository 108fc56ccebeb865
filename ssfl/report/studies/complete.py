"""Which results of a study are in its tables: of settings whose seeds all finished, the accuracies that are flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ssfl.report.runs.settings import Setting
from ssfl.report.studies.definition import NAMES, Accuracy, Selector, Study
from ssfl.report.studies.flatness import late_accuracy, setting_flatness


def finished(study: Study, found: Sequence[Setting]) -> list[tuple[Selector, Setting]]:
    """The settings whose seeds all finished, in the study's order."""
    pairs = [(selector, selector.find(found)) for selector in study.order]
    return [(selector, s) for selector, s in pairs if s is not None and len(s.finished) == s.asked]


def complete(study: Study, found: Sequence[Setting]) -> list[tuple[Selector, Setting]]:
    """The finished settings with a flat curve; only these are in the tables, with the accuracies that are flat."""
    return [(selector, setting) for selector, setting in finished(study, found) if flat_accuracies(setting)]


def flat_accuracies(setting: Setting) -> list[Accuracy]:
    """The accuracies whose curve is flat; none if seeds differ in length.

    A curve without evaluations in one of its last two tenths is not flat: the rule cannot be applied to it.
    """
    gains = {name: setting_flatness(setting, name) for name in accuracies_of(setting)}
    same = len(lengths(setting)) == 1
    return [name for name, gain in gains.items() if same and gain is not None and gain.flat]


def accuracies_of(setting: Setting) -> list[Accuracy]:
    """The accuracies that the finished runs were tested for."""
    rows = [row for run in setting.finished for row in run.evaluations]
    return [name for name in NAMES if any(row.get(name) is not None for row in rows)]


def lengths(setting: Setting) -> list[int]:
    """The numbers of rounds of the finished runs, each once."""
    return sorted({run.rounds_done for run in setting.finished})


def spread(setting: Setting, accuracy: Accuracy) -> str:
    """Mean ± sample standard deviation over the finished seeds, in percent; "" if there is none."""
    values = [100 * v for run in setting.finished if (v := late_accuracy(run, accuracy)) is not None]
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def shown(setting: Setting, accuracy: Accuracy) -> str:
    """The cell of a table: `spread` of a flat curve, "not flat", or "none" for a method without this accuracy."""
    if accuracy not in accuracies_of(setting):
        return "none"
    return spread(setting, accuracy) if accuracy in flat_accuracies(setting) else "not flat"
