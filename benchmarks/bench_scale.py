"""Growth of a round's time and peak memory with clients, cohort and model; two threads, one step per client.

Each setting is a separate run (perceptron on 64 features, 16 examples per client). Slopes are those of a log-log plot:
0 means constant, 1 means proportional. "Without data" is memory minus the clients' examples.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contest import Score, contest, python_contestant
from benchmarks.figures import Figure, options, publish, times
from benchmarks.workload import BATCH_SIZE, FEATURES

CLIENTS = (10, 100, 1_000, 10_000)
COHORTS = (1, 10, 100)
PARAMETERS = (10_000, 100_000, 1_000_000, 11_000_000)
USUAL = (100, 10, 100_000)
LARGE = 1_000_000
"""Number of parameters for which a reply in memory (4 MB) would be visible compared with PyTorch's memory."""
EXAMPLE_BYTES = 4 * FEATURES + 8
"""Bytes of an example: float32 inputs and an int64 label."""


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

    @property
    def data_bytes(self) -> int:
        """All clients' training examples."""
        return self.clients * BATCH_SIZE * EXAMPLE_BYTES


@dataclass(frozen=True)
class Series:
    """Settings that differ in one field of Setting, `varied`."""

    name: str
    varied: str
    settings: list[Setting]


def series(quick: bool) -> list[Series]:
    """The varied fields; the others are those of USUAL, or a model of LARGE parameters."""
    clients, cohort, parameters = USUAL
    some_clients: Sequence[int] = (10, 10_000) if quick else CLIENTS
    some_cohorts: Sequence[int] = (1, 100) if quick else COHORTS
    some_sizes: Sequence[int] = (10_000, 1_000_000) if quick else PARAMETERS
    return [
        Series("clients", "clients", [Setting(n, cohort, parameters) for n in some_clients]),
        Series("cohort", "cohort", [Setting(clients, n, parameters) for n in some_cohorts]),
        Series("cohort, 1 M parameters", "cohort", [Setting(clients, n, LARGE) for n in some_cohorts]),
        Series("parameters", "parameters", [Setting(clients, cohort, n) for n in some_sizes]),
    ]


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
        contestant = python_contestant(
            setting.name, "benchmarks.ours", [setting.name, "--executor", executor]
        )
        done = contest([contestant], rounds)
        if setting.name in done:
            scores[setting] = done[setting.name]
    return scores


def figures(quick: bool, rounds: int, executor: str) -> list[Figure]:
    """Time and memory of every setting, then slopes for each varied field."""
    varied = series(quick)
    scores = measure(list(dict.fromkeys(s for some in varied for s in some.settings)), rounds, executor)
    rows = []
    for setting, score in scores.items():
        rows.append(times(f"{setting.name}: round", score.seconds))
        rows.append(Figure(f"{setting.name}: peak memory", score.peak_bytes / 1e9, "GB"))
        without = score.peak_bytes - setting.data_bytes
        rows.append(Figure(f"{setting.name}: peak memory without data", without / 1e9, "GB"))
    for some in varied:
        rows += slopes(some, scores)
    return rows


def slopes(some: Series, scores: Mapping[Setting, Score]) -> list[Figure]:
    """Slopes of time, memory and memory without data over the varied field; empty for fewer than two settings."""
    settings = [s for s in some.settings if s in scores]
    if len(settings) < 2:
        return []
    x = [float(getattr(s, some.varied)) for s in settings]
    grows = {
        "time": [times("", scores[s].seconds).value for s in settings],
        "memory": [scores[s].peak_bytes for s in settings],
        "memory without data": [scores[s].peak_bytes - s.data_bytes for s in settings],
    }
    n = len(settings)
    return [
        Figure(f"slope of {what} over {some.name}", slope(x, y), "log/log", n=n) for what, y in grows.items()
    ]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="measured rounds of each setting (default: 20)")
    parser.add_argument("--executor", choices=["sequential", "threads", "processes"], default="threads")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    rounds = chosen.rounds or (3 if chosen.quick else 20)
    executor = "sequential" if chosen.quick else chosen.executor
    publish(figures(chosen.quick, rounds, executor), chosen.json)


if __name__ == "__main__":
    main()
