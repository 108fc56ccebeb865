"""The bytes of messages. Received bytes are not trusted.

A message is a JSON head, whose fields are checked one by one, and a body of concatenated payloads
(docs/wire-format.md), whose lengths the head lists. Nothing received is executed, unpickled or imported by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import torch

from ssfl.algorithms.base import ClientReport, TrainLoss
from ssfl.core.metrics import Tally
from ssfl.deploy.protocol.fields import Fields
from ssfl.deploy.protocol.messages import (
    AnyMessage,
    Done,
    Finish,
    Finished,
    HeldBroadcast,
    Inputs,
    Join,
    Joined,
    MessageError,
    Ping,
    Pong,
    Scaling,
    Work,
)
from ssfl.deploy.transport.port import MAX_HEAD_BYTES, Message

MAX_CLASSES = 100_000
MAX_EXAMPLES = 1 << 40
MAX_BLOBS = 4096


# ── to bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def pack(message: AnyMessage, bodies: dict[tuple[int, ...], bytes] | None = None) -> Message:
    """Serialise a message. The body is the inbox, then missed broadcasts, so equal inboxes give equal bodies.

    bodies: of messages that exist, by the ids of their payloads: messages with the same payloads share one body.
    """
    blobs: tuple[bytes, ...] = ()
    if isinstance(message, Join):
        head = _head("join", message) | {
            "scaling": None if message.scaling is None else vars(message.scaling)
        }
    elif isinstance(message, Joined):
        head = _head("joined", message)
    elif isinstance(message, Work):
        blobs = (*message.inbox, *(blob for m in message.missed for blob in m.blobs))
        head = _head("work", message, "inbox", "missed") | {
            "inbox": len(message.inbox),
            "missed": [[m.digest, m.phase, m.round, len(m.blobs)] for m in message.missed],
        }
    elif isinstance(message, Done):
        blobs = (message.payload,)
        head = _head("done", message, "payload", "report") | {"report": _report_head(message.report)}
    else:
        head = _head(type(message).__name__.lower(), message)
    head["sizes"] = [len(blob) for blob in blobs]
    raw = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    return Message(raw, blobs[0] if len(blobs) == 1 else _joined(blobs, {} if bodies is None else bodies))


def _joined(blobs: tuple[bytes, ...], bodies: dict[tuple[int, ...], bytes]) -> bytes:
    key = tuple(map(id, blobs))
    if key not in bodies:
        bodies[key] = b"".join(blobs)
    return bodies[key]


def _head(kind: str, message: AnyMessage, *left_out: str) -> dict[str, Any]:
    fields = {name: value for name, value in vars(message).items() if name not in left_out}
    return {"kind": kind, **fields}


def _report_head(report: ClientReport) -> dict[str, Any]:
    tallies = {
        name: [t.correct.tolist(), t.total.tolist(), _finite_or_none(t.loss_sum)]
        for name, t in report.tallies.items()
    }
    loss = report.train_loss
    return {
        "examples": report.examples,
        "train_loss": None if loss is None else [loss.last_epoch, loss.all_epochs],
        "tallies": tallies,
        "train_flops": report.train_flops,
        "wall_seconds": report.wall_seconds,
    }


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ── from bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────
def unpack(message: Message) -> AnyMessage:
    """Deserialise and check a message. Raises MessageError."""
    if len(message.head) > MAX_HEAD_BYTES:
        raise MessageError(f"a head of {len(message.head)} bytes; at most {MAX_HEAD_BYTES} are read")
    try:
        fields = json.loads(message.head)
    except (ValueError, RecursionError):
        raise MessageError("the head is not JSON") from None
    if not isinstance(fields, dict):
        raise MessageError("the head is not an object")
    reader = Fields(fields)
    kind = reader.text("kind", 16)
    if kind not in _READERS:
        raise MessageError(f"a message of kind {kind!r}; known are {', '.join(_READERS)}")
    return _READERS[kind](reader, _cut(reader.whole_list("sizes", MAX_BLOBS), message.body))


def _cut(sizes: Sequence[int], body: bytes) -> list[bytes]:
    if sum(sizes) != len(body):
        raise MessageError(f"payloads of {sum(sizes)} bytes are announced, {len(body)} were received")
    if len(sizes) == 1:
        return [body]
    out, at = [], 0
    for size in sizes:
        out.append(body[at : at + size])
        at += size
    return out


def _read_join(f: Fields, blobs: list[bytes]) -> Join:
    entry = f.inside("scaling")
    scaling = None
    if entry is not None:
        scaling = Scaling(
            entry.numbers("mean", 1 << 20),
            entry.numbers("std", 1 << 20),
            entry.whole("crop_padding", 0, 64),
            entry.flag("flip"),
        )
        if not scaling.mean or len(scaling.mean) != len(scaling.std) or min(scaling.std) <= 0:
            raise MessageError("scaling must hold as many deviations above 0 as means, at least one")
    names = f.texts("class_names", MAX_CLASSES)
    return Join(
        f.text("run"), f.whole("client", 0, 1 << 31), f.text("config", MAX_HEAD_BYTES), names, scaling
    )


def _read_joined(f: Fields, blobs: list[bytes]) -> Joined:
    return Joined(
        f.text("run"),
        f.whole("client", 0, 1 << 31),
        f.whole("examples", 1, MAX_EXAMPLES),
        f.whole("test_examples", 0, MAX_EXAMPLES),
        f.whole("num_classes", 2, MAX_CLASSES),
        tuple(f.whole_list("input_shape", 8)),
        f.text("layout", 64),
        f.text("classes", 64),
        f.texts("standing", 64, 64),
        f.whole("protocol"),
        _read_inputs(f),
    )


def _read_inputs(f: Fields) -> Inputs:
    """A site without this field has a version that scales all examples."""
    text = f.text("inputs", 16) if "inputs" in f.fields else "scaled"
    if text not in get_args(Inputs):
        raise MessageError(f"inputs must be one of {', '.join(get_args(Inputs))}")
    return cast(Inputs, text)


def _read_work(f: Fields, blobs: list[bytes]) -> Work:
    count = f.whole("inbox", 0, MAX_BLOBS)
    missed, at = [], count
    for item in f.sequence("missed", 64):
        if not isinstance(item, list) or len(item) != 4:
            raise MessageError("missed must hold [digest, phase, round, payloads]")
        entry = Fields(dict(zip(("digest", "phase", "round", "payloads"), item, strict=True)), "missed.")
        size = entry.whole("payloads", 0, MAX_BLOBS)
        missed.append(
            HeldBroadcast(
                entry.text("digest", 64),
                entry.text("phase"),
                entry.whole("round"),
                tuple(blobs[at : at + size]),
            )
        )
        at += size
    if at != len(blobs):
        raise MessageError(f"{at} payloads are announced, {len(blobs)} were received")
    return Work(
        f.text("run"),
        f.whole("client", 0, 1 << 31),
        f.whole("exchange", 1),
        f.text("phase"),
        f.whole("round", 1),
        f.whole("total"),
        tuple(blobs[:count]),
        f.flag("publish"),
        f.texts("holds", 64, 64),
        tuple(missed),
        tuple(f.whole_list("checkpoints", 16)) if "checkpoints" in f.fields else (),
    )


def _read_done(f: Fields, blobs: list[bytes]) -> Done:
    entry = f.inside("report")
    if entry is None or len(blobs) != 1:
        raise MessageError("a reply must have one report and one payload")
    loss = None
    if entry.fields.get("train_loss") is not None:
        values = entry.numbers("train_loss", 2)
        if len(values) != 2:
            raise MessageError("report.train_loss must hold two means")
        loss = TrainLoss(*values)
    tallies = entry.inside("tallies")
    if tallies is None or len(tallies.fields) > 16:
        raise MessageError("report.tallies must be an object of at most 16")
    report = ClientReport(
        entry.whole("examples", 1, MAX_EXAMPLES),
        loss,
        {str(name): _read_tally(name, value) for name, value in tallies.fields.items()},
        entry.whole("train_flops"),
        entry.number("wall_seconds"),
    )
    return Done(
        f.text("run"),
        f.whole("client", 0, 1 << 31),
        f.whole("exchange", 1),
        report,
        blobs[0],
        f.texts("holds", 64, 64),
    )


def _read_tally(name: str, value: Any) -> Tally:
    if not isinstance(value, list) or len(value) != 3:
        raise MessageError(f"tallies.{name:.40} must hold [correct, total, loss_sum]")
    f = Fields(dict(zip(("correct", "total", "loss_sum"), value, strict=True)), f"tallies.{name:.40}.")
    # Their sums over the classes must stay below 2^63.
    correct, total = (f.whole_list(name, MAX_CLASSES, MAX_EXAMPLES) for name in ("correct", "total"))
    if len(correct) != len(total) or any(c > t for c, t in zip(correct, total, strict=True)):
        raise MessageError(f"tallies.{name:.40}: more hits than examples, or lists of two lengths")
    loss = math.nan if value[2] is None else f.number("loss_sum")
    return Tally(torch.tensor(correct, dtype=torch.int64), torch.tensor(total, dtype=torch.int64), loss)


_READERS: Mapping[str, Callable[[Fields, list[bytes]], AnyMessage]] = {
    "join": _read_join,
    "joined": _read_joined,
    "work": _read_work,
    "done": _read_done,
    "ping": lambda f, blobs: Ping(f.text("run")),
    "pong": lambda f, blobs: Pong(f.text("run"), f.whole("wish", -1, 1 << 31)),
    "finish": lambda f, blobs: Finish(f.text("run")),
    "finished": lambda f, blobs: Finished(f.text("run")),
}
