"""The time per trained client of each method, relative to FedAvg: rounds of all methods alternately, one thread.

Per trained client, to compare DisPFL as published (every client in every round) with methods that use a cohort. A
round includes masks, their search, pruned activations, packing and aggregation. Scoring, which happens once before
the first round, is a separate row; tests of models are not included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.figures import Figure, options, paired_ratio, publish, spread
from benchmarks.ours import Ours, Way
from benchmarks.workload import BATCH_SIZE, LR, Workload, workload
from ssfl.algorithms.base import Algorithm, Probe
from ssfl.algorithms.dispfl import DisPFL, MaskSearch
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP

DENSITY = 0.5
FIT = FitSpec(1, BATCH_SIZE, ExponentialDecay(LR, 1.0))
METHODS: Mapping[str, Callable[[int], Algorithm[Any]]] = {
    "FedAvg": lambda cohort: FedAvg(FIT, cohort),
    "SSFL": lambda cohort: SSFL(FIT, cohort, Discovery(Probe(SNIP), DENSITY)),
    "SparsyFed": lambda cohort: SparsyFed(FIT, cohort, DENSITY),
    "local training": lambda cohort: LocalTraining(FIT, cohort),
    "DisPFL, a cohort": lambda cohort: DisPFL(FIT, DENSITY, per_round=cohort),
    "DisPFL, every client": lambda cohort: DisPFL(FIT, DENSITY),
    "DisPFL, every client, without its mask search": lambda cohort: DisPFL(
        FIT, DENSITY, MaskSearch(grow="none")
    ),
}
PREPARATION = 2
"""Maximum number of exchanges before the first timed round: scoring and broadcast of the mask."""


class MethodRun:
    """One method's run and its seconds per trained client."""

    def __init__(self, work: Workload, method: Callable[[int], Algorithm[Any]]) -> None:
        algorithm = method(work.cohort)
        self.ours = Ours(work, Way("sequential"), algorithm)
        self.seconds: list[float] = []
        self.scored: float | None = None
        """Seconds per scored client of the scoring phase; None without one."""

    def round(self) -> float:
        """Seconds per trained client in the next training round; exchanges before it are not counted."""
        for _ in range(PREPARATION + 1):
            plan, seconds = self.ours.plan, self.ours.round()
            assert plan is not None
            each = seconds / len(plan.instructions)
            if plan.timed:
                return each
            if self.ours.runner.tasks[plan.phase].probe is not None:
                self.scored = each
        raise AssertionError("no training round came")


def figures(work: Workload, rounds: int) -> list[Figure]:
    """Every method's seconds per trained client, and their ratio to FedAvg's."""
    runs = {name: MethodRun(work, method) for name, method in METHODS.items()}
    for turn in range(rounds + 1):
        for run in runs.values():
            seconds = run.round()
            if turn:
                run.seconds.append(seconds)
    reference = runs["FedAvg"].seconds
    rows = []
    for name, run in runs.items():
        cost = paired_ratio(reference, run.seconds)
        middle = statistics.median(run.seconds)
        label = f"{work.name}: {name}: a trained client"
        rows.append(Figure(label, middle, "s", "FedAvg", 1 / cost, rounds, spread(run.seconds)))
        rows.append(Figure(f"{label}: times FedAvg's cost", cost, "x", n=rounds))
        if run.scored is not None:
            ratio = statistics.median(reference) / run.scored
            rows.append(Figure(f"{work.name}: {name}: a scored client", run.scored, "s", "FedAvg", ratio))
    return rows


def main() -> None:
    """See README.md in this folder."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=("cnn", "resnet18", "tiny"), default="cnn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, help="examples per client (default: the workload's 50)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = min(chosen.rounds, 2) if chosen.quick else chosen.rounds
    work = workload(chosen.model)
    if chosen.examples is not None:
        work = replace(work, examples=chosen.examples)
    publish(figures(work, rounds), chosen.json)


if __name__ == "__main__":
    main()
