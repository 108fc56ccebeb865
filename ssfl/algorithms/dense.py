"""The dense client's task, and a plan that sends one payload to a cohort; shared by several methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from ssfl.algorithms.base import (
    THETA,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    ReplyPart,
    RoundPlan,
    ServerContext,
    Work,
)
from ssfl.core.aggregate import weighted_mean
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values

WEIGHTS = "w"
"""Name of the part that holds model values."""


def dense_training(fit: FitSpec) -> ClientTask:
    """FedAvg's client: receive a dense model, train with local SGD, send the dense model."""
    return ClientTask(
        receive_dense,
        send_dense,
        fit=fit,
        evaluate=("trained",),
        averaged_by="examples",
        reply_parts={WEIGHTS: ReplyPart("dense")},
    )


def receive_dense(
    inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """The received model [P]."""
    return {THETA: dense_values(inbox[0].parts[WEIGHTS])}, state


def send_dense(
    work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send all values, including running statistics."""
    return Payload({WEIGHTS: DenseValues(work[THETA])}, context.client), state


def acknowledge(
    work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send an empty payload."""
    return Payload({}, context.client), state


def broadcast(
    phase: str, clients: Iterable[int], payload: Payload, clock: Clock, timed: bool = True
) -> RoundPlan:
    """A plan that sends one payload to all these clients."""
    return RoundPlan(phase, tuple(Instruction(c, (payload,)) for c in clients), clock, timed)


def dense_mean(replies: Iterable[ClientReply], plan: RoundPlan, context: ServerContext) -> Tensor:
    """FedAvg: the n_k-weighted mean of dense replies, [P]."""
    return weighted_mean(map(_weighed, replies), expected_examples(plan, context))


def _weighed(reply: ClientReply) -> tuple[Tensor, float]:
    return dense_values(reply.payload.parts[WEIGHTS]), float(reply.examples)


def expected_examples(plan: RoundPlan, context: ServerContext) -> list[float]:
    """n_k of every client in the plan."""
    return [float(context.example_counts[i.client]) for i in plan.instructions]
