"""Payloads in a deployment: their bytes, references to peers, kinds of phases, and checks of clients' replies.

Only this module of the deployment depends on how payloads are encoded and on which kinds of parts exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, PartForm, PartLength, PeerModel, RoundPlan
from ssfl.core.factored import factored_size
from ssfl.core.layout import Layout
from ssfl.core.payloads import DenseValues, MaskBits, MaskedValues, Part, Payload, SparseValues
from ssfl.wire.holdings import VALUES
from ssfl.wire.message import decode, encode
from ssfl.wire.parts import CodedMask

MAX_PARTS_A_PAYLOAD = 4

LARGEST_VALUE = 2.0**64
"""Values above this are refused: the sum over all clients, weighted by their examples, must stay finite in float32."""
KINDS: Mapping[PartForm, type[Part]] = MappingProxyType(
    {"dense": DenseValues, "sparse": SparseValues, "on_sent_mask": MaskedValues}
)
KIND_NAMES: Mapping[type[Part], str] = MappingProxyType(
    {
        DenseValues: "dense values",
        SparseValues: "values with their mask",
        MaskedValues: "values",
        MaskBits: "a mask instead of values",
        CodedMask: "a mask instead of values",
    }
)

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


@final
@dataclass(frozen=True)
class ExpectedReply:
    """What the replies to an instruction must contain, so that the methods can sum them.

    sent: name -> decoded part with values that the client was sent. Parts that the task does not declare
    (`ClientTask.reply_parts`) must have the form of the sent part with the same name.
    """

    client: int
    sent: Mapping[str, Part]
    task: ClientTask
    timed: bool
    layout: Layout

    def refusal_before_decoding(self, payload: Payload) -> str | None:
        """Why a reply must not be decoded; None if its sender, its parts and their decoded sizes are as expected."""
        if payload.sender != self.client:
            return f"the payload says that it comes from client {payload.sender}"
        if len(payload.parts) > MAX_PARTS_A_PAYLOAD:
            return f"{len(payload.parts)} parts; at most {MAX_PARTS_A_PAYLOAD} are accepted"
        declared = self.task.reply_parts
        for name, part in payload.parts.items():
            if declared is not None and name not in declared:
                return f"part {name!r} was not asked for"
            expected = self._kinds_and_count(name)[1]
            is_coded = part.head.codec != 0
            if is_coded and expected is not None and part.head.count != expected:
                return f"part {name}: {part.head.count} values, expected {expected}"
        lacking = sorted(self._names(payload) - payload.parts.keys())
        return f"part {lacking[0]} is missing" if lacking else None

    def refusal(self, payload: Payload) -> str | None:
        """Why a decoded reply is refused; None if it has the expected forms, masks and sizes, and finite values."""
        for name, part in payload.parts.items():
            reason = self._mismatch(name, part)
            if reason is None and isinstance(part, VALUES) and not _all_summable(part.values):
                reason = "values that are not finite (NaN or infinite) or above 2^64"
            if reason is not None:
                return f"part {name}: {reason}"
        return None

    def _names(self, payload: Payload) -> AbstractSet[str]:
        """Names that a reply must have."""
        if self.task.reply_parts is not None:
            return self.task.reply_parts.keys()
        # A client whose model is personal may reply with an empty payload.
        may_be_empty = not payload.parts and self.task.kept_model is not None
        return self.sent.keys() if self.timed and not may_be_empty else set()

    def _kinds_and_count(self, name: str) -> tuple[tuple[type[Part], ...], int | None]:
        """Returns (the kinds that a decoded part may have, its count); any kind and None if that is not known."""
        declared, sent = (self.task.reply_parts or {}).get(name), self.sent.get(name)
        if declared is not None and declared.form != "on_sent_mask":
            return (KINDS[declared.form],), _length(declared.length, self.layout)
        if sent is None:
            return ((Part,) if declared is None else (MaskedValues,)), None
        kinds = (MaskedValues,) if isinstance(sent, MaskedValues) else (DenseValues, SparseValues)
        return kinds, sent.head.count

    def _mismatch(self, name: str, part: Part) -> str | None:
        """Why a decoded part has not the expected kind, mask, count and type; None if it has."""
        kinds, count = self._kinds_and_count(name)
        sent = self.sent.get(name)
        if not isinstance(part, kinds):
            support = f" on mask {sent.support.hex()}" if isinstance(sent, MaskedValues) else ""
            return f"{_kind_of(part)}, expected {' or '.join(KIND_NAMES[k] for k in kinds)}{support}"
        if isinstance(part, MaskedValues) and isinstance(sent, MaskedValues) and part.support != sent.support:
            return f"values on mask {part.support.hex()}, expected on mask {sent.support.hex()}"
        if count is not None and part.head.count != count:
            return f"{part.head.count} values, expected {count}"
        types = self._types(name)
        if part.has_values and types and part.head.dtype not in types:
            return f"values of type {part.head.dtype}, expected {' or '.join(sorted(map(str, types)))}"
        return None

    def _types(self, name: str) -> AbstractSet[torch.dtype]:
        """The value types that a part may have; empty if they are not known."""
        if name in self.sent:
            return {self.sent[name].head.dtype}
        types = {part.head.dtype for part in self.sent.values()}
        return {*types, torch.float32} if types else types  # decoded votes are float32


def _length(name: PartLength, layout: Layout) -> int:
    if name == "factors":
        return factored_size(layout)
    return layout.size if name == "model" else layout.prunable_size


def _kind_of(part: Part) -> str:
    """What a part is, for a message about a refusal."""
    if isinstance(part, MaskedValues):
        return f"values on mask {part.support.hex()}"
    return KIND_NAMES.get(type(part), "coded values, for which this run has no codec")


def _all_summable(values: Tensor) -> bool:
    """Whether weighted sums stay finite. Without a second vector of this size; aminmax propagates NaN."""
    return not values.numel() or bool(
        (torch.stack(torch.aminmax(values)).double().abs() <= LARGEST_VALUE).all()
    )
