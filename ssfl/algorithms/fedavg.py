"""FedAvg (McMahan et al. 2017, algorithm 1), and FedAvg-FT: a last local fine-tuning of the global model.

The reference runs of the paper's table use SGD with lr 0.1 * 0.998 ** round, weight decay 5e-4 and clip 10, the
same as SSFL. FedAvg-FT's reference code fine-tunes at 0.1 * 0.998 ** -1 (its round counter is -1 there); we use the
initial learning rate, 0.1 (0.2 % apart).
"""

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
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, DenseTraining, broadcast, dense_mean
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values


@dataclass(frozen=True)
class FedAvgState:
    """The global model [P], and whether the closing fine-tuning is done."""

    theta: Tensor
    tuned: bool = False


@dataclass(frozen=True)
class FineTuning(ClientTask):
    """Train the received model for oneself, test it, keep it; send an acknowledgement only."""

    fit: FitSpec = field()
    evaluate: tuple[str, ...] = ("trained",)

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """Take the server's model as it came."""
        return {"theta": dense_values(inbox[0].parts[WEIGHTS])}

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """An empty payload: the tuned model does not leave the client."""
        return Payload({}, context.client), state


@dataclass(frozen=True)
class FedAvg:
    """Sample `per_round` clients, train, average by n_k. With `fine_tune`, every client trains the result once more.

    The fine-tuned models are the clients' own: they are tested on the clients' splits and not sent back into the
    global model. Their uplink is an empty acknowledgement.
    """

    fit: FitSpec
    per_round: int
    fine_tune: FitSpec | None = None

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train", and "fine_tune" when asked for."""
        tasks: dict[str, ClientTask] = {"train": DenseTraining(self.fit)}
        if self.fine_tune is not None:
            tasks["fine_tune"] = FineTuning(self.fine_tune)
        return tasks

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (FedAvgState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> FedAvgState:
        """The initial model, as it is."""
        return FedAvgState(theta)

    def configure_round(self, state: FedAvgState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """A cohort a round; after the last, everybody once for FedAvg-FT."""
        payload = Payload({WEIGHTS: DenseValues(state.theta)})
        if clock.round <= clock.total:
            return broadcast("train", sample_clients(context, self.per_round, clock), payload, clock)
        if self.fine_tune is not None and not state.tuned:
            return broadcast("fine_tune", context.clients, payload, clock, timed=False)
        return None

    def aggregate(
        self, state: FedAvgState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> FedAvgState:
        """The mean of the replies; fine-tuning leaves the global model alone."""
        if plan.phase == "fine_tune":
            return replace(state, tuned=True)
        return replace(state, theta=dense_mean(replies, plan, context))

    def weights_to_evaluate(self, state: FedAvgState, context: ServerContext) -> Tensor | None:
        """The global model."""
        return state.theta

    def global_mask(self, state: FedAvgState, context: ServerContext) -> Tensor | None:
        """Dense: no mask."""
        return None
