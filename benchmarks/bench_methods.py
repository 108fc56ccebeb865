"""What a trained client costs with each method: rounds of all methods in turns, one thread, against FedAvg's.

Per trained client, so that DisPFL as published (every client in every round) stands beside methods with a cohort. A
round holds all that belongs to it: masks, their search, pruned activations, packing, aggregation. Phases before the
first round (scoring) are left out. No tests of models.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.figures import Figure, options, paired_ratio, publish, spread
from benchmarks.ours import Ours
from benchmarks.workload import BATCH_SIZE, LR, Workload, workload
from ssfl.algorithms.base import Algorithm, Probe
from ssfl.algorithms.dispfl import DisPFL, MaskSearch
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import snip

DENSITY = 0.5
FIT = FitSpec(1, BATCH_SIZE, ExponentialDecay(LR, 1.0))
METHODS: Mapping[str, Callable[[int], Algorithm[Any]]] = {
    "FedAvg": lambda cohort: FedAvg(FIT, cohort),
    "SSFL": lambda cohort: SSFL(FIT, cohort, Discovery(Probe(snip), DENSITY)),
    "SparsyFed": lambda cohort: SparsyFed(FIT, cohort, DENSITY),
    "local training": lambda cohort: LocalTraining(FIT, cohort),
    "DisPFL, a cohort": lambda cohort: DisPFL(FIT, DENSITY, per_round=cohort),
    "DisPFL, every client": lambda cohort: DisPFL(FIT, DENSITY),
    "DisPFL, every client, without its mask search": lambda cohort: DisPFL(
        FIT, DENSITY, MaskSearch(grow="none")
    ),
}
PREPARATION = 2
"""Exchanges before the first timed round, at most: scoring and handing out the mask."""


class Seat:
    """One method's run and its seconds a trained client."""

    def __init__(self, work: Workload, method: Callable[[int], Algorithm[Any]]) -> None:
        algorithm = method(work.cohort)
        self.ours = Ours(work, "sequential", workers=1, algorithm=algorithm)
        self.seconds: list[float] = []

    def round(self) -> float:
        """Seconds a trained client of the next training round; exchanges before it are not counted."""
        for _ in range(PREPARATION + 1):
            progress = self.ours.progress
            plan = self.ours.loop.algorithm.configure_round(
                progress.state, progress.clock, self.ours.loop.context
            )
            assert plan is not None
            seconds = self.ours.round()
            if plan.timed:
                return seconds / len(plan.instructions)
        raise AssertionError("no training round came")


def figures(work: Workload, rounds: int) -> list[Figure]:
    """Every method's seconds a trained client, and its share of FedAvg's."""
    seats = {name: Seat(work, method) for name, method in METHODS.items()}
    for turn in range(rounds + 1):
        for seat in seats.values():
            seconds = seat.round()
            if turn:
                seat.seconds.append(seconds)
    reference = seats["FedAvg"].seconds
    rows = []
    for name, seat in seats.items():
        cost = paired_ratio(reference, seat.seconds)
        middle = statistics.median(seat.seconds)
        label = f"{work.name}: {name}: a trained client"
        rows.append(Figure(label, middle, "s", "FedAvg", 1 / cost, rounds, spread(seat.seconds)))
        rows.append(Figure(f"{label}: times FedAvg's cost", cost, "x", n=rounds))
    return rows


def main() -> None:
    """See README.md in this folder."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=("cnn", "resnet18", "tiny"), default="cnn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--examples", type=int, help="a client's (default: the workload's 50)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = min(chosen.rounds, 2) if chosen.quick else chosen.rounds
    work = workload(chosen.model)
    if chosen.examples is not None:
        work = replace(work, examples=chosen.examples)
    publish(figures(work, rounds), chosen.json)


if __name__ == "__main__":
    main()
