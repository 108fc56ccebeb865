"""The rule for a training curve that is flat at its end, applied to the mean curve over a setting's seeds.

A curve of R rounds is flat when the mean accuracy of the evaluations in its last tenth of rounds exceeds the mean of
those in the tenth before by less than `LIMIT`. `python -m ssfl.report.studies.flatness FILE...` applies it to every
setting and exits with 1 if one is not flat.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import final

from ssfl.report.runs.run import Run, RunError
from ssfl.report.runs.settings import Setting, settings
from ssfl.report.studies.definition import NAMES

LIMIT = 0.01
"""One point (accuracies are shares, 0-1). 360 rounds tested every 10, or 200 every 5: four evaluations in a tenth."""
SHARE = 0.1
"""Share of the rounds at the end that are compared with as many rounds before them."""


@final
@dataclass(frozen=True)
class Flatness:
    """The gain of the last tenth of a curve over the tenth before."""

    gain: float
    """Difference of the two means (a share of 1); negative: the curve fell."""
    late: int
    """Evaluations in the last tenth."""

    @property
    def flat(self) -> bool:
        """Whether the rule holds."""
        return self.gain < LIMIT

    def __str__(self) -> str:
        return f"{100 * self.gain:+.2f}" + ("" if self.flat else " (not flat)")


def flatness(curve: Mapping[int, float], rounds: int) -> Flatness | None:
    """Apply the rule to accuracies by round; None if one of the tenths has no evaluation.

    Args:
        curve: accuracy (0-1) after each evaluated round.
        rounds: R, the rounds of the whole run.
    """
    late = [y for r, y in curve.items() if r > (1 - SHARE) * rounds]
    before = [y for r, y in curve.items() if (1 - 2 * SHARE) * rounds < r <= (1 - SHARE) * rounds]
    return Flatness(fmean(late) - fmean(before), len(late)) if late and before else None


def late_accuracy(run: Run, accuracy: str) -> float | None:
    """A run's result: the mean of its evaluations in the last tenth of the rounds (a single one varies with the last
    cohort's classes by a point or more), or the result of a final phase such as fine-tuning; None if the method has no
    such accuracy or the run did not finish."""
    if not run.finished:
        return None
    closing = run.last_evaluation()
    if closing.get("event") == "phase" and accuracy == "client_accuracy_mean":
        return None if closing.get(accuracy) is None else float(closing[accuracy])
    rounds = run.rounds_done
    rows = [row for row in run.evaluations if row["event"] == "round" and row.get(accuracy) is not None]
    late = [float(row[accuracy]) for row in rows if row["round"] > (1 - SHARE) * rounds]
    return fmean(late) if late else None


def mean_curve(runs: Sequence[Run], accuracy: str) -> dict[int, float]:
    """The mean over runs at every round that all of them evaluated. Phases after the last round are not included."""
    curves = [
        {
            row["round"]: row[accuracy]
            for row in run.evaluations
            if row["event"] == "round" and _has(row, accuracy)
        }
        for run in runs
    ]
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {r: fmean(curve[r] for curve in curves) for r in sorted(shared)}


def setting_flatness(setting: Setting, accuracy: str) -> Flatness | None:
    """Flatness of the mean curve over the finished seeds; None if none has this accuracy, or their lengths differ."""
    runs = setting.finished
    lengths = {run.rounds_done for run in runs}
    return flatness(mean_curve(runs, accuracy), lengths.pop()) if len(lengths) == 1 else None


def _has(row: Mapping[str, object], accuracy: str) -> bool:
    return row.get(accuracy) is not None


def main(words: Sequence[str]) -> int:
    """Arguments: FILE..., results or folders of runs."""
    if not words:
        print("usage: python -m ssfl.report.studies.flatness FILE_OR_FOLDER...", file=sys.stderr)
        return 2
    try:
        found = settings([Path(word) for word in words])
    except RunError as error:
        print(f"flatness: {error}", file=sys.stderr)
        return 1
    print(f"flat: the last tenth of the rounds gains less than {100 * LIMIT:g} points over the tenth before")
    steep = 0
    for setting in found:
        gains = {name: setting_flatness(setting, name) for name in NAMES}
        known = {name: gain for name, gain in gains.items() if gain is not None}
        steep += bool(setting.finished) and not (known and all(gain.flat for gain in known.values()))
        text = ", ".join(f"{name} {gain}" for name, gain in known.items())
        none = "not evaluated in both tenths, or seeds of different lengths (not flat)"
        none = none if setting.finished else "not finished"
        print(f"{setting.label}: {text or none}")
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
