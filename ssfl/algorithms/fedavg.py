"""FedAvg (McMahan et al. 2017, algorithm 1), and FedAvg-FT, which fine-tunes the final global model locally.

The reference runs of the paper's table use SGD with lr 0.1 * 0.998 ** round, weight decay 5e-4 and clip 10, the
same as SSFL. FedAvg-FT's reference code fine-tunes at 0.1 * 0.998 ** -1 (its round counter is -1 there); we use the
initial learning rate, 0.1 (0.2 % apart).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ssfl.algorithms.base import (
    ClientReply,
    ClientTask,
    Clock,
    RoundPlan,
    ServerContext,
    sample_clients,
)
from ssfl.algorithms.dense import (
    WEIGHTS,
    acknowledge,
    broadcast,
    dense_mean,
    dense_training,
    receive_dense,
)
from ssfl.algorithms.method import Method, NoSettings, Recipe
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload


@dataclass(frozen=True)
class FedAvgState:
    """The global model [P], and whether fine-tuning is done."""

    theta: Tensor
    tuned: bool = False


def fine_tuning(fit: FitSpec) -> ClientTask:
    """Train the received model on the client's data and test it; reply with an acknowledgement only."""
    return ClientTask(receive_dense, acknowledge, fit=fit, evaluate=("trained",), reply_parts={})


@dataclass(frozen=True)
class FedAvg:
    """Sample `per_round` clients, train, average by n_k. With `fine_tune`, every client then trains the final model.

    A fine-tuned model is tested on the client's own test split and then discarded: it is not in client states,
    checkpoints or exported files, and does not change the global model. The client sends an acknowledgement.
    """

    fit: FitSpec
    per_round: int
    fine_tune: FitSpec | None = None
    client: ClientTask | None = None
    """The client's task in a round, for methods that differ from FedAvg only there; None: dense training."""

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train", and "fine_tune" with `fine_tune`."""
        tasks = {"train": dense_training(self.fit) if self.client is None else self.client}
        if self.fine_tune is not None:
            tasks["fine_tune"] = fine_tuning(self.fine_tune)
        return tasks

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (FedAvgState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> FedAvgState:
        """The initial model, unchanged."""
        return FedAvgState(theta)

    def configure_round(self, state: FedAvgState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """A sampled cohort in each round; for FedAvg-FT all clients once after the last."""
        payload = Payload({WEIGHTS: DenseValues(state.theta)})
        if clock.round <= clock.total:
            return broadcast("train", sample_clients(context, self.per_round, clock), payload, clock)
        if self.fine_tune is not None and not state.tuned:
            return broadcast("fine_tune", context.clients, payload, clock, timed=False)
        return None

    def aggregate(
        self, state: FedAvgState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> FedAvgState:
        """The n_k-weighted mean of the replies; fine-tuning does not change the global model."""
        if plan.phase == "fine_tune":
            return replace(state, tuned=True)
        # An extended run continues training from the same global model and fine-tunes again after its new last round.
        return replace(state, theta=dense_mean(replies, plan, context), tuned=False)

    def weights_to_evaluate(self, state: FedAvgState, context: ServerContext) -> Tensor | None:
        """The global model [P]."""
        return state.theta

    def global_mask(self, state: FedAvgState, context: ServerContext) -> Tensor | None:
        """None: the model is dense."""
        return None


def build(settings: NoSettings, recipe: Recipe) -> FedAvg:
    """FedAvg from its settings and the recipe (`algorithm=fedavg`)."""
    return FedAvg(recipe.fit, recipe.per_round)


def build_with_fine_tuning(settings: NoSettings, recipe: Recipe) -> FedAvg:
    """FedAvg with final fine-tuning (`algorithm=fedavg_ft`)."""
    return FedAvg(recipe.fit, recipe.per_round, fine_tune=recipe.fine_tune)


METHOD = Method(build, lambda settings: "FedAvg")
METHOD_FT = Method(build_with_fine_tuning, lambda settings: "FedAvg-FT", reads=("fine_tune",))
