"""Training inside one mask that all clients share: phase 2 of SSFL and of the shared random masks.

The server broadcasts the mask once (phase "store_mask"); afterwards only values are sent, without indices (phase
"train"). A client that has not acknowledged the mask receives it again with its next values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ssfl.algorithms.base import (
    MASK,
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
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, acknowledge, broadcast, expected_examples
from ssfl.core.aggregate import weighted_mean
from ssfl.core.layout import Layout
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import MaskBits, Part, Payload, Support

STORE_MASK = "store_mask"
"""Name of the phase that broadcasts the mask."""


@dataclass(frozen=True)
class MaskedState:
    """The global model [P], the mask over prunable coordinates [N] once it exists, and the clients that hold it."""

    theta: Tensor
    bits: Tensor | None = None
    broadcast: bool = False
    """Whether the mask has been sent to every client once."""
    holders: tuple[int, ...] = ()
    """Clients that have replied to a message with the mask, in ascending order."""
    dense_rounds: int = 0
    """Training rounds before the mask is made; part of the state, so that a resumed run keeps it."""

    def with_holders(self, clients: Iterable[int]) -> MaskedState:
        """The state in which `clients` hold the mask too."""
        new = set(clients).difference(self.holders)
        return replace(self, holders=tuple(sorted({*self.holders, *new}))) if new else self


class SupportMemo:
    """Caches the `Support` of the last mask, so that its indices are not computed for every client and round.

    Results do not depend on the cache. Threads may share one: one makes the support, the others wait for it.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, Support] | None = None
        self._making = threading.Lock()

    def of(self, bits: Tensor, layout: Layout) -> Support:
        """The support [P] of mask bits [N]."""
        with self._making:
            if self._last is None or not bool(bits.equal(self._last[0])):
                self._last = bits.clone(), Support.of(layout.expand_mask(bits), layout)
            return self._last[1]

    def __reduce__(self) -> tuple[type[SupportMemo], tuple[()]]:
        return SupportMemo, ()  # empty elsewhere


def store_mask() -> ClientTask:
    """Store the mask that the server broadcasts; reply with an acknowledgement."""
    return ClientTask(_receive_mask, acknowledge, reply_parts={})


def masked_training(fit: FitSpec, memo: SupportMemo) -> ClientTask:
    """Receive values, train with SGD inside the mask, send values (paper, phase 2: FedAvg restricted to m).

    The gradient is masked before it is clipped, as in the authors' current code (earlier code clipped the dense
    gradient and masked the weights after the step). Weights outside the mask start at zero and stay zero without a
    projection, because their gradient and their weight decay are zero.
    """
    return ClientTask(
        partial(_receive_values, memo),
        partial(_send_values, memo),
        fit=fit,
        evaluate=("trained",),
        averaged_by="examples",
        mask_stage="before_clip",
        reply_parts={WEIGHTS: ReplyPart("on_sent_mask")},
    )


def _receive_mask(
    inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    return {}, {**state, MASK: mask_bits(inbox[0].parts[MASK], context.layout)}


def _receive_values(
    memo: SupportMemo, inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """Place the values on the mask that was sent with them, or else on the stored one.

    Raises ValueError if the client has no mask, or the values belong to another mask.
    """
    parts = inbox[0].parts
    if MASK in parts:
        state = {**state, MASK: mask_bits(parts[MASK], context.layout)}
    if MASK not in state:
        raise ValueError(f"client {context.client} has no mask: send it with the values")
    support = memo.of(state[MASK], context.layout)
    theta = support.unpack(parts[WEIGHTS])
    return {THETA: theta, MASK: support.mask[: context.layout.trained_size]}, state


def _send_values(
    memo: SupportMemo, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send the values on the mask, without indices."""
    support = memo.of(state[MASK], context.layout)
    return Payload({WEIGHTS: support.pack(work[THETA])}, context.client), state


def mask_bits(part: Part, layout: Layout) -> Tensor:
    """The bits [N] of a mask part. Raises ValueError if it is not a mask of this model."""
    if not isinstance(part, MaskBits) or part.bits.numel() != layout.prunable_size:
        raise ValueError(f"expected a mask of {layout.prunable_size} bits")
    return part.bits


def masked_plan(
    state: MaskedState, memo: SupportMemo, per_round: int, clock: Clock, context: ServerContext
) -> RoundPlan:
    """The next exchange: first the mask to all clients (not a training round), then values to a sampled cohort.

    A client that does not hold the mask receives it in the same message, before the values.
    """
    assert state.bits is not None
    mask = MaskBits(state.bits)
    if not state.broadcast:
        return broadcast(STORE_MASK, context.clients, Payload({MASK: mask}), clock, timed=False)
    packed = memo.of(state.bits, context.layout).pack(state.theta)
    values, both = Payload({WEIGHTS: packed}), Payload({MASK: mask, WEIGHTS: packed})
    holders = set(state.holders)
    cohort = sample_clients(context, per_round, clock)
    instructions = tuple(Instruction(c, (values if c in holders else both,)) for c in cohort)
    return RoundPlan("train", instructions, clock)


def masked_aggregate(
    state: MaskedState,
    memo: SupportMemo,
    replies: Iterable[ClientReply],
    plan: RoundPlan,
    context: ServerContext,
) -> MaskedState:
    """The next state: in "store_mask" the holders of the mask; in "train" the n_k-weighted mean of the packed values.

    The new model is zero outside the mask. Every client that replied holds the mask.
    """
    assert state.bits is not None
    if plan.phase == STORE_MASK:
        return replace(state.with_holders(r.client for r in replies), broadcast=True)
    support = memo.of(state.bits, context.layout)
    replied: list[int] = []

    def values() -> Iterable[tuple[Tensor, float]]:
        for reply in replies:
            replied.append(reply.client)
            yield support.values(reply.payload.parts[WEIGHTS]), float(reply.examples)
            del reply  # before the next one is received

    theta = support.scatter(weighted_mean(values(), expected_examples(plan, context)))
    return replace(state.with_holders(replied), theta=theta)
