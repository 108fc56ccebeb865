"""How a round's time and peak memory grow with clients, cohort and model; two worker processes, one step a client.

Each setting is a run of its own (perceptron on 64 features, 16 examples a client). Slopes are those of log against
log: 0 does not grow, 1 grows in proportion.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contest import Score, contest, python_contestant
from benchmarks.figures import Figure, options, publish, times

CLIENTS = (10, 100, 1_000, 10_000)
COHORTS = (1, 10, 100)
PARAMETERS = (10_000, 100_000, 1_000_000, 11_000_000)
USUAL = (100, 10, 100_000)


@dataclass(frozen=True)
class Setting:
    """Clients, cohort, parameters."""

    clients: int
    cohort: int
    parameters: int

    @property
    def name(self) -> str:
        """The workload's name."""
        return f"scale-{self.clients}-{self.cohort}-{self.parameters}"


def series(quick: bool) -> dict[str, list[Setting]]:
    """What is varied, and its settings; the rest stays as USUAL."""
    clients, cohort, parameters = USUAL
    some_clients: Sequence[int] = (10, 10_000) if quick else CLIENTS
    some_cohorts: Sequence[int] = (1, 100) if quick else COHORTS
    some_sizes: Sequence[int] = (10_000, 1_000_000) if quick else PARAMETERS
    return {
        "clients": [Setting(n, cohort, parameters) for n in some_clients],
        "cohort": [Setting(clients, n, parameters) for n in some_cohorts],
        "parameters": [Setting(clients, cohort, n) for n in some_sizes],
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y over log x."""
    u, v = ([math.log(value) for value in values] for values in (x, y))
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    over = sum((a - mean_u) ** 2 for a in u)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v)) / over


def measure(settings: Sequence[Setting], rounds: int, executor: str) -> dict[Setting, Score]:
    """Every setting alone."""
    scores: dict[Setting, Score] = {}
    for setting in settings:
        print(setting.name, file=sys.stderr)
        contestant = python_contestant(setting.name, "benchmarks.ours", setting.name, "--executor", executor)
        done = contest([contestant], rounds)
        if setting.name in done:
            scores[setting] = done[setting.name]
    return scores


def figures(quick: bool, rounds: int, executor: str) -> list[Figure]:
    """Time and memory of every setting, then a slope for each thing varied."""
    varied = series(quick)
    scores = measure(list(dict.fromkeys(s for some in varied.values() for s in some)), rounds, executor)
    rows = []
    for setting, score in scores.items():
        rows.append(times(f"{setting.name}: round", score.seconds))
        rows.append(Figure(f"{setting.name}: peak memory", score.peak_bytes / 1e9, "GB"))
    for what, settings in varied.items():
        some = [s for s in settings if s in scores]
        if len(some) > 1:
            x = [float(getattr(s, what)) for s in some]
            seconds = [times("", scores[s].seconds).value for s in some]
            memory = [scores[s].peak_bytes for s in some]
            rows.append(Figure(f"slope of time over {what}", slope(x, seconds), "log/log", n=len(some)))
            rows.append(Figure(f"slope of memory over {what}", slope(x, memory), "log/log", n=len(some)))
    return rows


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="measured rounds of each setting (default: 10)")
    parser.add_argument("--executor", choices=["sequential", "processes"], default="processes")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    rounds = chosen.rounds or (3 if chosen.quick else 10)
    executor = "sequential" if chosen.quick else chosen.executor
    publish(figures(chosen.quick, rounds, executor), chosen.json)


if __name__ == "__main__":
    main()
