"""Training alone: every client on its own data, from the common initial model. The control for federation itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values

MODEL = "theta"
"""Name of the client's memory of its model [P]."""


@dataclass(frozen=True)
class KeepTraining(ClientTask):
    """Go on with the own model; nothing leaves the client."""

    fit: FitSpec = field()
    evaluate: tuple[str, ...] = ("trained",)

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """The remembered model; at the first visit the common initial one."""
        if MODEL in state:
            return {"theta": state[MODEL].clone()}
        if not inbox:
            raise ValueError(f"client {context.client} holds no model yet: send it the initial model first")
        return {"theta": dense_values(inbox[0].parts[WEIGHTS])}

    def kept_model(self, state: ClientState) -> Tensor | None:
        """The model as trained last."""
        return state.get(MODEL)

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """An empty acknowledgement; the model stays."""
        return Payload({}, context.client), {MODEL: work["theta"]}


@dataclass(frozen=True)
class LocalTrainingState:
    """The common initial model [P], and who holds it already."""

    theta: Tensor
    joined: tuple[int, ...] = ()


@dataclass(frozen=True)
class LocalTraining:
    """Every client (or, with `per_round`, a sampled cohort) trains alone and keeps its model.

    No models are exchanged. The ledger shows the initial model once per client (44.7 MB for ResNet18) and empty
    acknowledgements after it.
    """

    fit: FitSpec
    per_round: int | None = None

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": KeepTraining(self.fit)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (LocalTrainingState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> LocalTrainingState:
        """The initial model, as it is."""
        return LocalTrainingState(theta)

    def configure_round(
        self, state: LocalTrainingState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """The initial model to those who lack it; nothing to the others."""
        if clock.round > clock.total:
            return None
        chosen = context.clients if self.per_round is None else sample_clients(context, self.per_round, clock)
        first = (Payload({WEIGHTS: DenseValues(state.theta)}),)
        known = set(state.joined)
        instructions = tuple(Instruction(c, () if c in known else first) for c in chosen)
        return RoundPlan("train", instructions, clock)

    def aggregate(
        self,
        state: LocalTrainingState,
        plan: RoundPlan,
        replies: Iterable[ClientReply],
        context: ServerContext,
    ) -> LocalTrainingState:
        """Nothing but who has started."""
        return replace(state, joined=tuple(sorted({*state.joined, *(r.client for r in replies)})))

    def weights_to_evaluate(self, state: LocalTrainingState, context: ServerContext) -> Tensor | None:
        """There is no global model."""
        return None

    def global_mask(self, state: LocalTrainingState, context: ServerContext) -> Tensor | None:
        """No mask."""
        return None
