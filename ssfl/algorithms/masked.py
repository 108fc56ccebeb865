"""Training inside one mask that everybody holds: the second phase of SSFL and of the shared random masks.

The mask is broadcast once (`StoreMask`); from then on values travel without indices (`MaskedTraining`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

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
from ssfl.algorithms.dense import WEIGHTS, broadcast, expected_examples
from ssfl.core.aggregate import weighted_mean
from ssfl.core.layout import Layout
from ssfl.core.masks import keep_
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import MaskBits, Part, Payload, Support

MASK = "mask"
"""Name of the part, and of the client's memory, that hold mask bits over prunable coordinates [N]."""


@dataclass(frozen=True)
class MaskedState:
    """The global model [P], the mask over prunable coordinates [N] once made, whether clients hold it."""

    theta: Tensor
    bits: Tensor | None = None
    told: bool = False


class SupportMemo:
    """The last mask's `Support`, so that its indices are made once and not per client and round.

    A memo, not state: the same bits give the same support with or without it.
    """

    def __init__(self) -> None:
        self._bits: Tensor | None = None
        self._support: Support | None = None

    def of(self, bits: Tensor, layout: Layout) -> Support:
        """The support [P] of mask bits [N]."""
        known = self._bits is not None and (bits is self._bits or bool(bits.equal(self._bits)))
        if self._support is None or not known:
            self._support = Support.of(layout.expand_mask(bits))
            self._bits = bits.clone()
        return self._support

    def __getstate__(self) -> dict[str, None]:
        return {"_bits": None, "_support": None}


@dataclass(frozen=True)
class StoreMask(ClientTask):
    """Keep the mask that the server broadcasts."""

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """The mask's bits; there is nothing to train."""
        return {MASK: mask_bits(inbox[0].parts[MASK], context.layout)}

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """Acknowledge; remember."""
        return Payload({}, context.client), {**state, MASK: work[MASK]}


@dataclass(frozen=True)
class MaskedTraining(ClientTask):
    """Values in, SGD inside the mask, values out (paper: FedAvg restricted to m).

    The gradient is masked before it is clipped, as in the authors' current code (their ancestor clipped the dense
    gradient and masked the weights after the step). Weights off the mask start at zero and get neither gradient
    nor, being zero, decay: they stay zero without a projection.
    """

    fit: FitSpec = field()
    evaluate: tuple[str, ...] = ("trained",)
    averaged_by: str = "examples"
    memo: SupportMemo = field(default_factory=SupportMemo, compare=False, repr=False)

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """Put the values where the remembered mask says; ValueError when the mask is another."""
        if MASK not in state:
            raise ValueError(f"client {context.client} holds no mask yet: send it before training")
        support = self.memo.of(state[MASK], context.layout)
        theta = support.unpack(inbox[0].parts[WEIGHTS])
        return {"theta": theta, MASK: support.mask[: context.layout.trained_size]}

    def transform_gradient(self, gradient: Tensor, theta: Tensor, work: Work) -> Tensor:
        """g * m."""
        return keep_(gradient, work[MASK])

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """The values on the mask, without indices."""
        support = self.memo.of(state[MASK], context.layout)
        return Payload({WEIGHTS: support.pack(work["theta"])}, context.client), state


def mask_bits(part: Part, layout: Layout) -> Tensor:
    """The bits [N] of a mask part; ValueError when it is no mask of this model."""
    if not isinstance(part, MaskBits) or part.bits.numel() != layout.prunable_size:
        raise ValueError(f"expected a mask of {layout.prunable_size} bits")
    return part.bits


def adopt_plan(bits: Tensor, clock: Clock, context: ServerContext) -> RoundPlan:
    """Broadcast the mask to every client, once; not a training round."""
    return broadcast("adopt", context.clients, Payload({MASK: MaskBits(bits)}), clock, timed=False)


def masked_plan(
    state: MaskedState, support: Support, per_round: int, clock: Clock, context: ServerContext
) -> RoundPlan:
    """A training round: the model's values on the mask to a sampled cohort."""
    payload = Payload({WEIGHTS: support.pack(state.theta)})
    return broadcast("train", sample_clients(context, per_round, clock), payload, clock)


def masked_aggregate(
    state: MaskedState,
    support: Support,
    replies: Iterable[ClientReply],
    plan: RoundPlan,
    context: ServerContext,
) -> MaskedState:
    """The n_k-weighted mean of values, in the packed space; zero off the mask."""
    values = ((support.values(r.payload.parts[WEIGHTS]), float(r.examples)) for r in replies)
    return replace(state, theta=support.scatter(weighted_mean(values, expected_examples(plan, context))))
