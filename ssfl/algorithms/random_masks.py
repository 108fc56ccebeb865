"""The random-mask controls of the paper's ablation: does it matter which weights are kept, and that all agree?

`algorithm.params.mode`: random_global and random_layerwise share one mask; random_clientwise gives every client its
own, the control for alignment.
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
from ssfl.algorithms.dense import WEIGHTS, broadcast, dense_mean
from ssfl.algorithms.masked import (
    MASK,
    MaskedState,
    MaskedTraining,
    StoreMask,
    SupportMemo,
    adopt_plan,
    masked_aggregate,
    masked_plan,
)
from ssfl.core.masks import keep_, random_global_mask, random_layerwise_mask
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values, pack_sparse
from ssfl.core.rng import stream


@dataclass(frozen=True)
class SharedRandomMask:
    """One random mask for all, then SSFL's second phase.

    scope "global": exactly floor(N * density) weights, uniform over the whole model; "layerwise": floor(n_l *
    density) in every layer l. The server draws it from the seed and broadcasts it like SSFL's.
    """

    fit: FitSpec
    per_round: int
    density: float
    scope: str = "global"
    memo: SupportMemo = field(default_factory=SupportMemo, compare=False, repr=False)

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phases "adopt", "train"."""
        return {"adopt": StoreMask(), "train": MaskedTraining(self.fit)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (MaskedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> MaskedState:
        """Draw the mask and cut the initial model to it."""
        generator = stream(context.seed, "mask")
        layout = context.layout
        if self.scope == "global":
            bits = random_global_mask(layout.prunable_size, self.density, generator)
        else:
            bits = random_layerwise_mask(layout.prunable_segments, self.density, generator)
        return MaskedState(theta * layout.expand_mask(bits), bits)

    def configure_round(self, state: MaskedState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """Broadcast the mask (untimed), then masked rounds."""
        assert state.bits is not None
        if clock.round > clock.total:
            return None
        if not state.told:
            return adopt_plan(state.bits, clock, context)
        return masked_plan(state, self.memo.of(state.bits, context.layout), self.per_round, clock, context)

    def aggregate(
        self, state: MaskedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> MaskedState:
        """As SSFL's second phase."""
        assert state.bits is not None
        if plan.phase == "adopt":
            return replace(state, told=True)
        return masked_aggregate(state, self.memo.of(state.bits, context.layout), replies, plan, context)

    def weights_to_evaluate(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The global model, zero off the mask."""
        return state.theta

    def global_mask(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The mask [P]."""
        assert state.bits is not None
        return self.memo.of(state.bits, context.layout).mask


@dataclass(frozen=True)
class OwnRandomMaskTraining(ClientTask):
    """Dense model in, cut to this client's own random mask, trained inside it, sent with its indices."""

    fit: FitSpec = field()
    density: float
    evaluate: tuple[str, ...] = ("trained",)

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """Draw the mask at the first visit, by the client's name; cut the model to it."""
        if MASK in state:
            bits = state[MASK]
        else:
            generator = stream(context.seed, "mask", context.client)
            bits = random_layerwise_mask(context.layout.prunable_segments, self.density, generator)
        mask = context.layout.expand_mask(bits)
        theta = dense_values(inbox[0].parts[WEIGHTS]) * mask
        return {"theta": theta, MASK: mask[: context.layout.trained_size], "bits": bits}

    def transform_gradient(self, gradient: Tensor, theta: Tensor, work: Work) -> Tensor:
        """g * m_k."""
        return keep_(gradient, work[MASK])

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """Values and mask: the server does not hold it."""
        mask = context.layout.expand_mask(work["bits"])
        return Payload({WEIGHTS: pack_sparse(work["theta"], mask)}, context.client), {MASK: work["bits"]}


@dataclass(frozen=True)
class ClientwiseState:
    """The global model [P], dense as the union of masks grows."""

    theta: Tensor


@dataclass(frozen=True)
class ClientwiseRandomMask:
    """Every client trains inside its own layerwise random mask; the server averages plainly, zeros included.

    As in the authors' code there is no weighting by overlap: a coordinate that few clients hold is pulled towards
    zero by the others. The global model is evaluated unmasked.
    """

    fit: FitSpec
    per_round: int
    density: float

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": OwnRandomMaskTraining(self.fit, self.density)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (ClientwiseState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> ClientwiseState:
        """The initial model, dense."""
        return ClientwiseState(theta)

    def configure_round(
        self, state: ClientwiseState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """The dense model to a sampled cohort."""
        if clock.round > clock.total:
            return None
        payload = Payload({WEIGHTS: DenseValues(state.theta)})
        return broadcast("train", sample_clients(context, self.per_round, clock), payload, clock)

    def aggregate(
        self,
        state: ClientwiseState,
        plan: RoundPlan,
        replies: Iterable[ClientReply],
        context: ServerContext,
    ) -> ClientwiseState:
        """FedAvg over models with different zeros."""
        return replace(state, theta=dense_mean(replies, plan, context))

    def weights_to_evaluate(self, state: ClientwiseState, context: ServerContext) -> Tensor | None:
        """The global model, unmasked."""
        return state.theta

    def global_mask(self, state: ClientwiseState, context: ServerContext) -> Tensor | None:
        """Nothing is common."""
        return None
