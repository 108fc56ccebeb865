"""What a server does with the bytes of a reply, up to the sum: read, check, decode, check, add.

`open_reply` is the oracle of the fuzzing and of tests: bytes are refused with WireError or a reason, or the reply can
be summed with an honest one. Expectations and transforms are made once, because a fuzzer calls it millions of times.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, ReplyPart
from ssfl.core.aggregate import weighted_mean
from ssfl.core.factored import factored_size
from ssfl.core.payloads import MaskedValues, Part, Payload, Support, dense_values
from ssfl.deploy.protocol.payloads import ExpectedReply, from_bytes
from ssfl.wire.coding import Coding
from ssfl.wire.entropy import squeezed
from ssfl.wire.half import Half
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.stack import WireStack
from ssfl.wire.uniform import Uniform
from tests.wire.attacks import HEAD, HELD, LAYOUT, NONE, N, P, message, part

SUPPORT = Support.of(torch.arange(P) % 3 > 0, LAYOUT)
ON_MASK = SUPPORT.pack(HELD.values)
KEPT, FACTORS = len(ON_MASK.values), factored_size(LAYOUT)
CODED = WireStack(LAYOUT, 7, up=[Coding(Uniform(0.05), Int8(), Log(), "coded")])
PLAIN = WireStack(LAYOUT, 7)
LOSSY = WireStack(LAYOUT, 7, down=[Coding(Uniform(0.5))], up=[Coding(Half())])
"""What a client receives differs from what the server sent, so the server corrects replies."""
OTHER_MASK = bytes(range(8))
"""A digest that is not SUPPORT's."""


def _unused(*_: object) -> None:
    raise NotImplementedError


TASK = ClientTask(_unused, _unused)  # type: ignore[arg-type]
FORMS: tuple[tuple[Mapping[str, ReplyPart] | None, Part, WireStack], ...] = (
    ({"w": ReplyPart("dense")}, HELD, PLAIN),
    ({"w": ReplyPart("dense"), "scores": ReplyPart("dense", "prunable")}, HELD, CODED),
    ({"scores": ReplyPart("dense", "prunable")}, HELD, CODED),
    ({"factors": ReplyPart("dense", "factors")}, HELD, CODED),
    ({"w": ReplyPart("sparse")}, HELD, CODED),
    ({"w": ReplyPart("on_sent_mask")}, ON_MASK, CODED),
    ({}, HELD, CODED),
    (None, HELD, CODED),
    (None, ON_MASK, PLAIN),
    ({"w": ReplyPart("on_sent_mask")}, ON_MASK, LOSSY),
)
"""Declared parts, the part "w" that the client was sent, the run's transforms."""
EXPECTED = tuple(
    ExpectedReply(0, MappingProxyType({"w": sent}), replace(TASK, reply_parts=declared), True, LAYOUT)
    for declared, sent, _ in FORMS
)
RECEIVED = tuple(
    stack.received_by([stack.send_to(Payload({"w": sent}), 0, "train", 1)], 0, "train", 1)
    for _, sent, stack in FORMS
)
FLOAT16 = 133
"""A kind of dense values with the value type 2, for `_part`."""
NAMES = (b"w", b"scores", b"factors", b"mask", b"x")


def open_reply(form: int, raw: bytes) -> str | None:
    """Why the reply is refused; None if it was accepted and summed. Raises WireError."""
    at = form % len(FORMS)
    expected = EXPECTED[at]
    received = from_bytes(raw, LAYOUT)
    reason = expected.refusal_before_decoding(received)
    if reason is None:
        payload = FORMS[at][2].receive_reply(received, RECEIVED[at], 0, "train", 1)
        reason = expected.refusal(payload)
        if reason is None:
            _add_up(payload, expected)
    return reason


def _add_up(payload: Payload, expected: ExpectedReply) -> None:
    """Sum every expected part with an honest vector, as methods do."""
    declared = expected.task.reply_parts
    for name in expected.sent if declared is None else declared:
        values = _vector(payload.parts[name])
        mean = weighted_mean([(values, 1e9), (torch.ones_like(values), 3.0)])
        assert bool(mean.isfinite().all()), "an accepted reply made the sum infinite"


def _vector(part_: Part) -> Tensor:
    return SUPPORT.values(part_) if isinstance(part_, MaskedValues) else dense_values(part_)


def multipart(raw: bytes) -> bytes:
    """A reply of up to 9 parts from bytes that a fuzzer chooses: their number, then each with its length before it.

    The number's tens are the client that it says it is from; 0 is the one that was asked.
    """
    sender, number = divmod(raw[0], 10) if raw else (0, 0)
    at, parts = 1, []
    for index in range(number):
        length = raw[at] if at < len(raw) else 0
        parts.append(_part(raw[at + 1 : at + 1 + length], index))
        at += 1 + length
    head = HEAD[:5] + bytes([number]) + HEAD[6:8] + struct.pack("<i", sender) + HEAD[12:]
    return message(*parts, head=head)


def _part(raw: bytes, at: int) -> bytes:
    """One part. kind: the value type in its two highest bits.

    flags: 1 a reference, 2 a frame is made here, 4 on the mask, 8 one value less, 16 a name by position, 128 on another
    mask than the one that was sent; 32 and 64 choose the count.
    """
    kind, codec, flags, name, cut = raw.ljust(5, b"\0")[:5]
    kind, dtype = kind % 7, kind >> 6
    digest = OTHER_MASK if flags & 128 else SUPPORT.digest
    body = raw[5:]
    named = bytes([97 + at]) if flags & 16 else NAMES[(name + at) % len(NAMES)]
    count = (P, N, KEPT, FACTORS)[flags >> 5 & 3] - (flags >> 3 & 1)
    data = body[:cut] + squeezed(body[cut:]) if flags & 2 else body
    if kind == 5:
        version = (ON_MASK if flags & 4 else HELD).version if flags & 1 else NONE
        data = version + (digest if flags & 4 else NONE) + bytes(4) + data
    elif kind == 3 and flags & 4:
        data = digest + data
    elif kind == 6:
        mask = b"\xff" * 5 if flags & 4 else body[:5].ljust(5, b"\0")
        version = HELD.version if flags & 1 else NONE
        data = version + bytes(1) + struct.pack("<Q", 5) + mask + bytes(4) + data
    return part(kind, data, count, codec % 6 if kind > 3 else 0, dtype, name=named)


def seeds() -> Mapping[str, bytes]:
    """Inputs of `multipart` that are accepted by one of the forms, or refused for one reason."""
    whole, named = _uniform(P, 2), _uniform(P, 2 | 16)
    made = {
        "weights": [whole],
        "difference": [_uniform(P, 3)],
        "weights and scores": [whole, _uniform(N, 2 | 32)],
        "on the mask": [_uniform(KEPT, 2 | 4 | 64)],
        "on the mask, plain": [bytes([3, 0, 4 | 64, 0, 0]) + bytes(4 * KEPT)],
        "plain": [bytes(5) + bytes(4 * P)],
        "scores as a mask": [bytes([1, 0, 32, 1, 0]) + b"\xff" * 4],
        "weights as a mask": [bytes([1, 0, 0, 0, 0]) + b"\xff" * 5],
        "too few weights": [_uniform(N, 2 | 32)],
        "factors": [bytes([0, 0, 96, 2, 0]) + bytes(4 * FACTORS)],
        "sparse": [bytes([2, 0, 0, 0, 0]) + b"\xff" * 5 + bytes(4 * P)],
        "infinite": [bytes([0, 0, 0, 0, 0]) + struct.pack("<f", float("inf")) * P],
        "of float16": [bytes([FLOAT16, 0, 0, 0, 0]) + bytes(2 * P)],
        "on another mask": [bytes([3, 0, 4 | 64 | 128, 0, 0]) + bytes(4 * KEPT)],
        "five": [named] * 5,
        "nine": [named] * 9,
        "none": [],
    }
    found = {name: b"".join(bytes([len(one)]) + one for one in parts) for name, parts in made.items()}
    raw = {name: bytes([len(parts)]) + found[name] for name, parts in made.items()}
    return {**raw, "of another client": bytes([10 + 1]) + found["weights"]}


def _uniform(count: int, flags: int) -> bytes:
    """A part of zeros in the codec uniform, for `_part`."""
    head = struct.pack("<BHI", 1, 1, count) + struct.pack("<f", 1.0)
    return bytes([5, 4, flags, 0, len(head)]) + head + bytes(count)
