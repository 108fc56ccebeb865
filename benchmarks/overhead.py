"""The share of a round that is not training: our round compared with only the same training steps."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.functional import cross_entropy

from benchmarks.figures import Figure, spread
from benchmarks.ours import Ours, Way
from benchmarks.workload import LR, Workload
from ssfl.engine.compute.flat_module import FlatModule


class BareSteps:
    """A round's training steps on batches made in advance: zero the gradient, forward, backward, w -= lr g."""

    def __init__(self, ours: Ours, work: Workload) -> None:
        runner = ours.runner
        data = runner.federation
        self.flat: FlatModule = runner.flat()
        self.layers = runner.arithmetic.layers
        order = torch.arange(work.examples)
        cohort = range(work.cohort)
        self.batches = [runner.to_compute(b) for k in cohort for b in data.train_batches(k, order, 16, None)]

    def round(self) -> float:
        """Seconds of the cohort's steps."""
        start = time.perf_counter()
        flat = self.flat
        flat.module.train()
        with self.layers(flat.module, flat.places):
            for x, y in self.batches:
                torch.autograd.backward(cross_entropy(flat.module(x), y))
                with torch.no_grad():
                    flat.trained.add_(flat.take_gradient(), alpha=-LR)
        return time.perf_counter() - start


def overhead(work: Workload, rounds: int) -> list[Figure]:
    """Sequential rounds and bare steps alternately; the rest of the round, and the time outside the clients' work."""
    ours = Ours(work, Way("sequential"))
    steps = BareSteps(ours, work)
    rest, outside = [], []
    theta = ours.progress.state.theta
    for turn in range(rounds + 1):
        round_seconds = ours.round()
        steps.flat.load(theta)
        step_seconds = steps.round()
        if turn:
            rest.append(1 - step_seconds / round_seconds)
            outside.append(1 - ours.exchange.client_seconds / round_seconds)
    name = f"{work.name}: framework's share of a round"
    middle, edge = statistics.median(rest), statistics.median(outside)
    other = f"{work.name}: share of a round outside clients' work"
    return [
        Figure(name, middle, "share", "the same steps alone", None, rounds, spread(rest)),
        Figure(other, edge, "share", "the clients' own seconds", None, rounds, spread(outside)),
    ]
