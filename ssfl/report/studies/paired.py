"""Differences between two settings, paired by seed: their mean and a confidence interval by Student's t.

A seed determines partition, initial weights, cohorts and batches in the same way for every method, so their variation
cancels in the difference of one seed. A run's result is its mean accuracy over the evaluations in the last tenth of its
rounds.
`python -m ssfl.report.studies.paired FILE "FIRST" "SECOND"` prints one difference, with the labels of `ssfl table`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import final

from ssfl.report.runs.labels import seed
from ssfl.report.runs.run import RunError
from ssfl.report.runs.settings import Setting, settings
from ssfl.report.studies.definition import NAMES
from ssfl.report.studies.flatness import late_accuracy

LEVEL = 0.95


@final
@dataclass(frozen=True)
class Difference:
    """First minus second, over the seeds that both finished; accuracies are 0-1."""

    by_seed: Mapping[int, float]
    mean: float
    half_width: float | None
    """Half the width of the confidence interval: t * s / sqrt(n), n - 1 degrees of freedom; None for a single seed."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        """Points: `+1.23 [-0.45, +2.91], n = 3`."""
        ends = self.interval
        interval = "" if ends is None else f" [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]"
        return f"{100 * self.mean:+.2f}{interval}, n = {len(self.by_seed)}"


def difference(
    first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL
) -> Difference | None:
    """From accuracies by seed; None if they have no common seed."""
    by_seed = {s: first[s] - second[s] for s in sorted(first.keys() & second.keys())}
    if not by_seed:
        return None
    values = list(by_seed.values())
    if len(values) == 1:
        return Difference(by_seed, values[0], None)
    from scipy.stats import t  # installed with scikit-learn; slow to import

    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return Difference(by_seed, fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


def by_seed(setting: Setting, accuracy: str) -> dict[int, float]:
    """A setting's results by seed (`late_accuracy`), finished runs only."""
    results = {seed(run): late_accuracy(run, accuracy) for run in setting.finished}
    return {number: value for number, value in results.items() if number is not None and value is not None}


def paired(first: Setting, second: Setting, accuracy: str) -> Difference | None:
    """First minus second in `global_accuracy` or `client_accuracy_mean`; None if they have no common seed."""
    return difference(by_seed(first, accuracy), by_seed(second, accuracy))


def main(words: Sequence[str]) -> int:
    """FILE FIRST SECOND."""
    if len(words) != 3:
        print('usage: python -m ssfl.report.studies.paired FILE_OR_FOLDER "FIRST" "SECOND"', file=sys.stderr)
        return 2
    try:
        found = {setting.label: setting for setting in settings([Path(words[0])])}
    except RunError as error:
        print(f"paired: {error}", file=sys.stderr)
        return 1
    for label in words[1:]:
        if label not in found:
            print(f"paired: no setting {label!r}; there are: {'; '.join(found)}", file=sys.stderr)
            return 2
    for accuracy in NAMES:
        print(f"{accuracy}: {paired(found[words[1]], found[words[2]], accuracy) or 'not in both'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
