"""An executor that computes nothing: clients answer with random changes, to compute the size of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import MASK, THETA, ClientContext, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.rng import stream
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.visit import Computed, begin_visit, end_visit
from ssfl.wire.stack import WireStack

CHANGE = 0.02
"""Root mean square of a random change, relative to that of the tensor's weights."""
SPREAD = 0.75
"""Random changes are normal times e^(SPREAD normal): their symbols have the entropy of real changes (bench_codec)."""


@final
@dataclass(frozen=True)
class UntrainedExecutor:
    """Receives and replies as every executor does; in between, weights change randomly, inside the mask."""

    tasks: Mapping[str, ClientTask]
    layout: Layout
    wire: WireStack
    examples: Mapping[int, int]
    """n_k of every client."""
    seed: int

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """One outcome a job."""
        yield from map(self._answer, jobs)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """No test set: no losses, no hits."""
        return torch.zeros(0), torch.zeros(0, dtype=torch.bool)

    def close(self) -> None:
        """Does nothing."""

    def _answer(self, job: ClientJob) -> Outcome:
        task = self.tasks[job.phase]
        context = ClientContext(job.client, job.clock, self.seed, self.layout, self.examples[job.client])
        visit = begin_visit(job, task, context, self.wire)
        work: Work = dict(visit.received)
        probed = None
        if task.fit is not None:
            work[THETA] = self._changed(work, task, self._changes)
        if task.probe is not None:
            size = self.layout.trained_size
            probed = work[THETA][:size].abs() * self._changes.abs()[:size]
        return end_visit(visit, Computed(work, probed, None, {}), 0, 0.0)

    def _changed(self, work: Work, task: ClientTask, change: Tensor) -> Tensor:
        theta, size = work[THETA].clone(), self.layout.trained_size
        for at, count in zip(self.layout.offsets, self.layout.sizes, strict=True):
            part = theta[at : at + count]
            if at < size:
                part += (
                    change[at : at + count].to(part.dtype)
                    * CHANGE
                    * part.pow(2).mean().sqrt().clamp(min=1e-3)
                )
        if task.mask_stage is not None:
            theta[:size] *= work[MASK]
        return theta

    @cached_property
    def _changes(self) -> Tensor:
        """[P], the same for all clients."""
        normal, spread = torch.randn(2, self.layout.size, generator=stream(self.seed, "untrained"))
        return normal * torch.exp(SPREAD * spread)
