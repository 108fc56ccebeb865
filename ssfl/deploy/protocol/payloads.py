"""Payloads in a deployment: their bytes, references to peers, kinds of phases, and checks of clients' replies.

Only this module of the deployment depends on how payloads are encoded and on which kinds of parts exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, PeerModel, RoundPlan
from ssfl.core.layout import Layout
from ssfl.core.payloads import SCORES, MaskedValues, Part, Payload
from ssfl.wire.message import decode, encode

MAX_PARTS_A_PAYLOAD = 4

Published = Callable[[int], Payload | None]
"""Client -> its last payload of a plan with `publish`; None if there is none."""


def to_bytes(payload: Payload, layout: Layout) -> bytes:
    """Encode a payload of this model."""
    return encode(payload, layout)


def from_bytes(raw: bytes | memoryview, layout: Layout) -> Payload:
    """Decode a payload. Raises WireError for bytes of another model; allocates no more than their size allows."""
    return decode(raw, layout)


def resolved(message: Payload | PeerModel, plan: RoundPlan, published: Published) -> Payload:
    """A message of a plan, with a reference to a peer replaced by that client's last payload.

    Raises LookupError where the client has published nothing and the plan names no initial model.
    """
    if isinstance(message, Payload):
        return message
    payload = published(message.client)
    if payload is None:
        if plan.initial_model is None:
            raise LookupError(
                f"client {message.client} has published nothing, and the plan names no initial model"
            )
        payload = plan.initial_model(message.client)
    return replace(payload, sender=message.sender)


def is_broadcast(task: ClientTask) -> bool:
    """Whether a phase only sends something that clients keep (SSFL's mask), without training or scoring."""
    return task.fit is None and task.probe is None and not task.evaluate


def is_scoring(task: ClientTask) -> bool:
    """Whether a phase only asks for scores."""
    return task.probe is not None and task.fit is None


def digest_of(blobs: Sequence[bytes]) -> str:
    """The digest that identifies a broadcast: 16 hex digits."""
    state = hashlib.blake2b(digest_size=8)
    for blob in blobs:
        state.update(len(blob).to_bytes(8, "little") + blob)
    return state.hexdigest()


def most_bytes(layout: Layout) -> int:
    """Upper bound of a reply's payload in bytes: each part at most a dense float64 vector with its own support."""
    return MAX_PARTS_A_PAYLOAD * (8 * layout.size + layout.size // 8 + 1024) + 4096


def refusal_reason(
    payload: Payload, client: int, sent: Mapping[str, Part], plan: RoundPlan, task: ClientTask, layout: Layout
) -> str | None:
    """Why a decoded reply is refused; None if it is accepted.

    sent: name -> decoded part with values that the client was sent. An accepted reply has the sender, parts, masks and
    sizes that the methods' sums read, and finite values.
    """
    if payload.sender != client:
        return f"the payload says that it comes from client {payload.sender}"
    if len(payload.parts) > MAX_PARTS_A_PAYLOAD:
        return f"{len(payload.parts)} parts; at most {MAX_PARTS_A_PAYLOAD} are accepted"
    lacking = sorted(sent.keys() - payload.parts.keys())
    # A client whose model is personal may reply with an empty payload.
    if lacking and plan.timed and (payload.parts or task.kept_model is None):
        return f"part {lacking[0]} is missing"
    scores = payload.parts.get(SCORES)
    if task.probe is not None and scores is not None and scores.head.count != layout.prunable_size:
        return f"part {SCORES}: {scores.head.count} values for {layout.prunable_size} prunable weights"
    for name, part in payload.parts.items():
        reason = _mismatch(part, sent[name]) if name in sent else None
        values = _values(part)
        if reason is None and values is not None and not _all_finite(values):
            reason = "values that are not finite (NaN or infinite)"
        if reason is not None:
            return f"part {name}: {reason}"
    return None


def _mismatch(part: Part, sent: Part) -> str | None:
    """Why a part does not match the part of the same name that was sent; None if it does."""
    if not part.has_values:
        return "a mask instead of values"
    if isinstance(sent, MaskedValues):
        if not isinstance(part, MaskedValues):
            return f"values on no known mask, expected on mask {sent.support.hex()}"
        if part.support != sent.support:
            return f"values on mask {part.support.hex()}, expected on mask {sent.support.hex()}"
    elif isinstance(part, MaskedValues):
        return f"values on mask {part.support.hex()}, expected dense values"
    if part.head.count != sent.head.count:
        return f"{part.head.count} values, expected {sent.head.count}"
    return None


def _all_finite(values: Tensor) -> bool:
    """Without a second vector of this size; aminmax propagates NaN."""
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def _values(part: Part) -> Tensor | None:
    """The values of a part that holds them as a tensor; None for masks."""
    values = getattr(part, "values", None) if part.has_values else None
    return values if isinstance(values, Tensor) else None
