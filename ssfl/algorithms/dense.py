"""The dense client's task, and the plan of a cohort that all receive the same: shared by several methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    RoundPlan,
    ServerContext,
    Work,
)
from ssfl.core.aggregate import weighted_mean
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values

WEIGHTS = "w"
"""Name of the part that holds model values."""


@dataclass(frozen=True)
class DenseTraining(ClientTask):
    """Dense in, local SGD, dense out (FedAvg's client)."""

    fit: FitSpec = field()
    evaluate: tuple[str, ...] = ("trained",)
    averaged_by: str = "examples"

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """Take the server's model as it came."""
        return {"theta": dense_values(inbox[0].parts[WEIGHTS])}

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """Send every value, statistics included."""
        return Payload({WEIGHTS: DenseValues(work["theta"])}, context.client), state


def broadcast(
    phase: str, clients: Iterable[int], payload: Payload, clock: Clock, timed: bool = True
) -> RoundPlan:
    """One payload for every named client."""
    return RoundPlan(phase, tuple(Instruction(c, (payload,)) for c in clients), clock, timed)


def dense_mean(replies: Iterable[ClientReply], plan: RoundPlan, context: ServerContext) -> Tensor:
    """FedAvg: the n_k-weighted mean of dense replies, [P]."""
    values = ((dense_values(r.payload.parts[WEIGHTS]), float(r.examples)) for r in replies)
    return weighted_mean(values, expected_examples(plan, context))


def expected_examples(plan: RoundPlan, context: ServerContext) -> list[float]:
    """n_k of every client that is to reply."""
    return [float(context.example_counts[i.client]) for i in plan.instructions]
