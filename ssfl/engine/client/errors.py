"""Errors of clients' work: the place, and optionally the inputs of the failing step."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, TrainLoss


@final
@dataclass(frozen=True)
class Place:
    """A place in a run. epoch and step count from 0; None: not in a local step."""

    client: str
    """The number of a client, or the numbers of a block."""
    phase: str
    round: int
    epoch: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        words = [f"client {self.client}", f"phase {self.phase}", f"round {self.round}"]
        if self.epoch is not None:
            words.append(f"local epoch {self.epoch + 1}")
        if self.step is not None:
            words.append(f"step {self.step + 1}")
        return ", ".join(words)


class EngineError(RuntimeError):
    """A run cannot continue; it can be resumed from its last checkpoint."""


class ClientError(EngineError):
    """A client's work failed.

    place: None for the global model. evidence: the inputs of its step, if they are kept. trace: the traceback as text,
    because a worker's traceback cannot be sent to its parent.
    """

    def __init__(
        self,
        place: Place | None,
        what: str,
        evidence: Mapping[str, Tensor] | None = None,
        trace: str = "",
    ) -> None:
        super().__init__(what if place is None else f"{place}: {what}")
        self.place, self.what, self.evidence, self.trace = place, what, dict(evidence or {}), trace

    def __reduce__(self) -> tuple[type[ClientError], tuple[Place | None, str, dict[str, Tensor], str]]:
        return type(self), (self.place, self.what, self.evidence, self.trace)


@final
class DivergedError(ClientError):
    """A client's training loss, or the global model, is not finite."""


@final
class Cancelled(Exception):
    """The work was cancelled; not a failure."""


@contextlib.contextmanager
def errors_named(place: Place) -> Iterator[None]:
    """Context in which any error becomes a ClientError with this place; EngineError and Cancelled pass unchanged."""
    try:
        yield
    except (EngineError, Cancelled):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ClientError(place, what, trace=traceback.format_exc()) from error


def check_finite(place: Place, loss: TrainLoss | None) -> None:
    """Raises DivergedError if a client's mean loss is not finite; None: the client had no minibatch."""
    if loss is not None and not math.isfinite(loss.all_epochs):
        raise DivergedError(place, f"the training loss is {loss.all_epochs}")


def check_finite_scores(place: Place, scores: Tensor | None) -> None:
    """Raises DivergedError if a saliency score [T] is not finite; None: the task has no probe."""
    if scores is not None and not bool(torch.stack(torch.aminmax(scores)).isfinite().all()):
        raise DivergedError(place, "a saliency score is not finite")


def place_of(context: ClientContext, phase: str) -> Place:
    """The place of a client's work as a whole."""
    return Place(str(context.client), phase, context.clock.round)
