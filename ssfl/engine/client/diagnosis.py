"""Repeats a client's failed work step by step, to find the failing step and its inputs.

Random streams are named, so the repetition fails at the same step, whichever executor computed it. It has no cost
unless a client fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import THETA, Work
from ssfl.core.net import Batch
from ssfl.engine.client.errors import ClientError, DivergedError, Place, place_of
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.runner import ClientRunner


@final
class StepWatch:
    """Records the inputs of the current step; stops at the first loss that is not finite."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.evidence: dict[str, Tensor] = {}

    def before(self, epoch: int, step: int, batch: Batch, theta: Tensor, work: Work) -> None:
        """Called before a step from theta [P] on a minibatch."""
        self.place = Place(self.place.client, self.place.phase, self.place.round, epoch, step)
        tensors = {f"work.{name}": t for name, t in work.items() if name != THETA}
        tensors |= {"inputs": batch[0], "labels": batch[1], "theta": theta}
        self.evidence = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def after(self, loss: Tensor) -> None:
        """Called with the loss, before the update. Raises DivergedError if it is not finite."""
        if not bool(torch.isfinite(loss)):
            raise DivergedError(self.place, f"the training loss is {float(loss)}", self.evidence)


def diagnose(runner: ClientRunner, job: ClientJob) -> ClientError | None:
    """The error of a job with its step and evidence; None if the repeated job succeeds."""
    watch = StepWatch(place_of(runner.context(job), job.phase))
    try:
        replace(runner, watch=watch).run(job)
    except ClientError as error:
        if error.evidence:
            return error
        return type(error)(watch.place, error.what, watch.evidence or _memory(job), error.trace)
    return None


def _memory(job: ClientJob) -> Mapping[str, Tensor]:
    return {f"memory.{name}": t.clone() for name, t in job.memory.load().state.items()}
