"""Local training: every client trains alone from the common initial model; the baseline without federation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ssfl.algorithms.base import (
    THETA,
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
from ssfl.algorithms.method import Method, Recipe
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values
from ssfl.settings import setting

MODEL = "theta"
"""Name of the model [P] in the client state."""


def keep_training(fit: FitSpec) -> ClientTask:
    """Continue to train the client's own model; send an acknowledgement only."""
    return ClientTask(
        _receive_model,
        _keep_model,
        fit=fit,
        evaluate=("trained",),
        kept_model=_kept_model,
        reply_parts={},
    )


def _receive_model(
    inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """The client's model; in its first round the common initial one."""
    if MODEL in state:
        return {THETA: state[MODEL]}, state
    if not inbox:
        raise ValueError(f"client {context.client} has no model: send the initial model first")
    return {THETA: dense_values(inbox[0].parts[WEIGHTS])}, state


def _keep_model(
    work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Keep the model and send an empty payload."""
    return Payload({}, context.client), {MODEL: work[THETA]}


def _kept_model(state: ClientState) -> Tensor | None:
    """The last trained model [P]."""
    return state.get(MODEL)


@dataclass(frozen=True)
class LocalTrainingState:
    """The common initial model [P], and the clients that have received it."""

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
        return {"train": keep_training(self.fit)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (LocalTrainingState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> LocalTrainingState:
        """The initial model, unchanged."""
        return LocalTrainingState(theta)

    def configure_round(
        self, state: LocalTrainingState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """Sends the initial model to clients that have not received it, and nothing to the others."""
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
        """Records which clients have started."""
        return replace(state, joined=tuple(sorted({*state.joined, *(r.client for r in replies)})))

    def weights_to_evaluate(self, state: LocalTrainingState, context: ServerContext) -> Tensor | None:
        """None: there is no global model."""
        return None

    def global_mask(self, state: LocalTrainingState, context: ServerContext) -> Tensor | None:
        """None: there is no mask."""
        return None


@dataclass(frozen=True)
class Settings:
    """Settings of `algorithm=local`."""

    fair_budget: bool = setting(
        False, "a sampled cohort trains each round, as in the other methods, instead of every client"
    )


def build(settings: Settings, recipe: Recipe) -> LocalTraining:
    """Local training from its settings and the recipe (`algorithm=local`)."""
    return LocalTraining(recipe.fit, recipe.per_round if settings.fair_budget else None)


METHOD = Method(build, lambda settings: "local training", Settings)
