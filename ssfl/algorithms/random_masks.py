"""The random masks of the paper's ablation, which test whether the choice of weights and a common mask matter.

`algorithm.params.mode`: random_global and random_layerwise use one mask for all clients; random_clientwise draws a mask
for each client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ssfl.algorithms.base import (
    MASK,
    THETA,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    ReplyPart,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, broadcast, dense_mean
from ssfl.algorithms.masked import (
    STORE_MASK,
    MaskedState,
    SupportMemo,
    masked_aggregate,
    masked_plan,
    masked_training,
    store_mask,
)
from ssfl.core.masks import random_global_mask, random_layerwise_mask
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values, pack_sparse
from ssfl.core.rng import stream
from ssfl.core.words import check_word

Scope = Literal["global", "layerwise"]


@dataclass(frozen=True)
class SharedRandomMask:
    """One random mask for all clients, then phase 2 of SSFL.

    scope "global": exactly floor(N * density) weights, uniform over the whole model; "layerwise": floor(n_l *
    density) in every layer l. The server draws it from the seed and broadcasts it like SSFL's.
    """

    fit: FitSpec
    per_round: int
    density: float
    scope: Scope = "global"
    memo: SupportMemo = field(default_factory=SupportMemo, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_word("scope", self.scope, Scope)

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phases "store_mask", "train"."""
        return {STORE_MASK: store_mask(), "train": masked_training(self.fit, self.memo)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (MaskedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> MaskedState:
        """Draws the mask and masks the initial model."""
        generator = stream(context.seed, "mask")
        layout = context.layout
        if self.scope == "global":
            bits = random_global_mask(layout.prunable_size, self.density, generator)
        else:
            bits = random_layerwise_mask(layout.prunable_segments, self.density, generator)
        return MaskedState(theta * layout.expand_mask(bits), bits)

    def configure_round(self, state: MaskedState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """The mask broadcast (not a training round), then masked rounds."""
        if clock.round > clock.total:
            return None
        return masked_plan(state, self.memo, self.per_round, clock, context)

    def aggregate(
        self, state: MaskedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> MaskedState:
        """As in SSFL's phase 2."""
        return masked_aggregate(state, self.memo, replies, plan, context)

    def weights_to_evaluate(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The global model [P], zero outside the mask."""
        return state.theta

    def global_mask(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The mask [P]."""
        assert state.bits is not None
        return self.memo.of(state.bits, context.layout).mask


def own_mask_training(fit: FitSpec, density: float) -> ClientTask:
    """Receive a dense model, train it inside the client's own random mask, send it with the mask."""
    return ClientTask(
        partial(_receive_masked, density),
        _send_sparse,
        fit=fit,
        evaluate=("trained",),
        mask_stage="before_clip",
        reply_parts={WEIGHTS: ReplyPart("sparse")},
    )


def _receive_masked(
    density: float, inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """Draw the mask in the client's first round, from a stream named by the client; mask the model."""
    if MASK not in state:
        generator = stream(context.seed, "mask", context.client)
        state = {MASK: random_layerwise_mask(context.layout.prunable_segments, density, generator)}
    mask = context.layout.expand_mask(state[MASK])
    theta = dense_values(inbox[0].parts[WEIGHTS]) * mask
    return {THETA: theta, MASK: mask[: context.layout.trained_size]}, state


def _send_sparse(
    work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send values and mask, because the server does not have the mask."""
    mask = context.layout.expand_mask(state[MASK])
    return Payload({WEIGHTS: pack_sparse(work[THETA], mask)}, context.client), state


@dataclass(frozen=True)
class ClientwiseState:
    """The global model [P]; it becomes dense as the union of masks grows."""

    theta: Tensor


@dataclass(frozen=True)
class ClientwiseRandomMask:
    """Every client trains inside its own layerwise random mask; the server averages all values, including zeros.

    As in the authors' code, means are not weighted by overlap: a coordinate that few clients keep is pulled towards
    zero by the zeros of the others. The global model is evaluated without a mask.
    """

    fit: FitSpec
    per_round: int
    density: float

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": own_mask_training(self.fit, self.density)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (ClientwiseState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> ClientwiseState:
        """The dense initial model."""
        return ClientwiseState(theta)

    def configure_round(
        self, state: ClientwiseState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """Sends the dense model to a sampled cohort."""
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
        """The n_k-weighted mean of models with different zeros."""
        return replace(state, theta=dense_mean(replies, plan, context))

    def weights_to_evaluate(self, state: ClientwiseState, context: ServerContext) -> Tensor | None:
        """The global model [P], without a mask."""
        return state.theta

    def global_mask(self, state: ClientwiseState, context: ServerContext) -> Tensor | None:
        """None: masks differ between clients."""
        return None
