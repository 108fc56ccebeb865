"""Notes on the length of a study's runs: runs that were extended, and single seeds whose curves still rise."""

from __future__ import annotations

from collections.abc import Sequence

from ssfl.report.runs.labels import seed
from ssfl.report.runs.run import Run
from ssfl.report.runs.settings import Setting
from ssfl.report.studies.complete import finished
from ssfl.report.studies.definition import NAMES, Selector, Study
from ssfl.report.studies.flatness import LIMIT, flatness, mean_curve


def length_notes(study: Study, found: Sequence[Setting]) -> list[str]:
    """Sentences for a page; none if no run was extended and no seed rises."""
    pairs = finished(study, found)
    extended = [line for pair in pairs if (line := _extended(*pair))]
    rising = [line for pair in pairs for line in _rising_seeds(*pair)]
    notes = []
    if extended:
        notes.append(
            "Runs that were started with fewer rounds and extended, with the gain of their mean curve in the last tenth"
            f" of the rounds that were planned first (global / clients, points): {'; '.join(extended)}."
        )
    if rising:
        notes.append(
            f"Single seeds that gain {100 * LIMIT:g} point or more in the last tenth (the rule is about means over"
            f" seeds): {'; '.join(rising)}."
        )
    return notes


def _planned(run: Run) -> int | None:
    """The rounds with which an extended run was started; None for others."""
    longer = any(row["event"] == "extended" for row in run.rows)
    return int(run.started["rounds"]) if longer and run.started.get("rounds") else None


def _extended(selector: Selector, setting: Setting) -> str:
    runs = [run for run in setting.finished if _planned(run)]
    if not runs:
        return ""
    planned = _planned(runs[0]) or 0
    seeds = "all seeds" if len(runs) == len(setting.finished) else f"seeds {_seeds(runs)}"
    curves = [mean_curve(runs, name) for name in NAMES]
    gains = [flatness({r: y for r, y in curve.items() if r <= planned}, planned) for curve in curves]
    shown = " / ".join(f"{100 * gain.gain:+.2f}" for gain in gains if gain is not None)
    return f"{selector} ({seeds}): {planned} rounds to {runs[0].rounds_done}, {shown}"


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(str(seed(run)) for run in runs)


def _rising_seeds(selector: Selector, setting: Setting) -> list[str]:
    lines = []
    for run in setting.finished:
        for accuracy, name in NAMES.items():
            gain = flatness(mean_curve([run], accuracy), run.rounds_done)
            if gain is not None and not gain.flat:
                lines.append(f"{selector}, seed {seed(run)}: {name} {100 * gain.gain:+.2f}")
    return lines
