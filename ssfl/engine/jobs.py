"""What an executor is given and what it gives back, and the error of a client whose training breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssfl.algorithms.base import ClientContext, ClientReply, ClientState, Clock, Instruction


@dataclass(frozen=True)
class Job:
    """An instruction with what the client remembers."""

    phase: str
    instruction: Instruction
    state: ClientState
    clock: Clock


@dataclass(frozen=True)
class Outcome:
    """A reply and what the client remembers now."""

    reply: ClientReply
    state: ClientState


class DivergedError(ArithmeticError):
    """A client's loss is not finite: names client, round and the way out."""


def check_finite(loss: float, context: ClientContext) -> None:
    """Stop at the client and round where training broke."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"client {context.client} in round {context.clock.round}: the training loss is {loss}. "
            "Lower optimizer.lr or optimizer.clip_norm, or check this client's data; "
            "the last checkpoint is kept"
        )
