"""The messages between the server and its sites, as frozen types, and their bytes. Received bytes are not trusted.

A message is a JSON head, whose fields are checked one by one, and a body of concatenated payloads
(docs/wire-format.md), whose lengths the head lists. Nothing received is executed, unpickled or imported by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch

from ssfl.algorithms.base import ClientReport, TrainLoss
from ssfl.core.metrics import Tally
from ssfl.deploy.transport.port import MAX_HEAD_BYTES, Message

PROTOCOL = 1
"""Version of the protocol; both sides must use the same."""
LACKS = "lacks broadcasts: "
"""Prefix of a site's refusal that lists the broadcasts the server must send again."""
JOIN_FIRST = "send a join first"
"""Part of a site's refusal if it has not joined the run."""
MAX_CLASSES = 100_000
MAX_EXAMPLES = 1 << 40
MAX_BLOBS = 4096

Inputs = Literal["scaled", "unchanged", "whole"]
"""Examples of a site as its network reads them: scaled, or as stored (dataset.features=unchanged), floats or whole
numbers."""
Kind = Literal["join", "joined", "work", "done", "ping", "pong", "finish", "finished"]


class MessageError(ValueError):
    """Bytes that are not a message of this protocol; the text is one line."""


@dataclass(frozen=True)
class Scaling:
    """How examples are normalised and augmented, if the server sets it for all sites."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Join:
    """Server to site: join a run that starts, is resumed, or is in progress."""

    run: str
    """The run's name; the same after a resume."""
    client: int
    """The site's number in this run, from its registered key."""
    config: str
    """The run's configuration as YAML: tasks and network, without paths of data."""
    class_names: tuple[str, ...] = ()
    """The common label order, if the server knows it; empty: the site's own."""
    scaling: Scaling | None = None
    """None: the site uses the statistics of its own data."""


@dataclass(frozen=True)
class Joined:
    """Site to server: what the server must know to plan a run. Nothing else about the data is sent."""

    run: str
    client: int
    examples: int
    test_examples: int
    num_classes: int
    input_shape: tuple[int, ...]
    layout: str
    """The digest of the network's layout, hex."""
    classes: str
    """A digest of the class names in their order, hex; it must be equal at all sites."""
    standing: tuple[str, ...] = ()
    """Digests of this run's broadcasts (masks) that the site holds."""
    protocol: int = PROTOCOL
    inputs: Inputs = "scaled"


@dataclass(frozen=True)
class Broadcast:
    """A broadcast (a mask) that a site has missed; the site processes it before the work."""

    digest: str
    phase: str
    round: int
    blobs: tuple[bytes, ...]


@dataclass(frozen=True)
class Work:
    """Server to site: an instruction."""

    run: str
    client: int
    exchange: int
    """Number of the exchange within the run, from 1; it identifies repeated and stale messages."""
    phase: str
    round: int
    total: int
    inbox: tuple[bytes, ...]
    publish: bool = False
    """Whether other clients receive the reply too; it must then not refer to what this client received."""
    holds: tuple[str, ...] = ()
    """Digests of the broadcasts that the site must hold for this work."""
    missed: tuple[Broadcast, ...] = ()
    """Those of them that the site lacks, as far as the server knows."""


@dataclass(frozen=True)
class Done:
    """Site to server: the reply to a Work."""

    run: str
    client: int
    exchange: int
    report: ClientReport
    payload: bytes
    holds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ping:
    """Server to site: asks for a Pong. A site answers one message at a time, so the Pong means that it is free."""

    run: str


@dataclass(frozen=True)
class Pong:
    """Site to server: free. run: the run that it has joined; empty for none."""

    run: str
    wish: int = -1
    """Client number that the site asks for if the server has no roster; -1: any."""


@dataclass(frozen=True)
class Finish:
    """Server to site: the run is over; save the client's own model and delete the run's state."""

    run: str


@dataclass(frozen=True)
class Finished:
    """Site to server: confirms a Finish."""

    run: str


AnyMessage = Join | Joined | Work | Done | Ping | Pong | Finish | Finished


def inputs_name(unchanged: bool, dtype: torch.dtype) -> Inputs:
    """How the network reads examples, as a message names it."""
    if not unchanged:
        return "scaled"
    return "whole" if dtype == torch.int64 else "unchanged"


# ── to bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def pack(message: AnyMessage) -> Message:
    """Serialise a message. The body is the inbox, then missed broadcasts, so equal inboxes give equal bodies."""
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
    return Message(raw, blobs[0] if len(blobs) == 1 else b"".join(blobs))


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
    reader = _Fields(fields)
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


@dataclass(frozen=True)
class _Fields:
    """A JSON object; each method reads one field and raises MessageError unless it has the right type and range."""

    fields: Mapping[str, Any]
    name: str = field(default="")

    def _get(self, key: str) -> Any:
        if key not in self.fields:
            raise MessageError(f"{self.name}{key} is missing")
        return self.fields[key]

    def text(self, key: str, most: int = 256) -> str:
        value = self._get(key)
        if not isinstance(value, str) or len(value) > most:
            raise MessageError(f"{self.name}{key} must be text of at most {most} characters")
        return value

    def whole(self, key: str, low: int = 0, high: int = 1 << 53) -> int:
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(
                f"{self.name}{key} must be a whole number from {low} to {high}, not {value!r:.40}"
            )
        return value

    def number(self, key: str) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise MessageError(f"{self.name}{key} must be a finite number, not {value!r:.40}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise MessageError(f"{self.name}{key} must be true or false")
        return value

    def sequence(self, key: str, most: int) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) > most:
            raise MessageError(f"{self.name}{key} must be a list of at most {most}")
        return value

    def whole_list(self, key: str, most: int) -> list[int]:
        values = self.sequence(key, most)
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 53 for v in values):
            raise MessageError(f"{self.name}{key} must hold whole numbers from 0")
        return values

    def texts(self, key: str, most: int, length: int = 256) -> tuple[str, ...]:
        values = self.sequence(key, most)
        if not all(isinstance(v, str) and len(v) <= length for v in values):
            raise MessageError(f"{self.name}{key} must hold texts of at most {length} characters")
        return tuple(values)

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        inside = self.sequence(key, most)
        return tuple(_Fields({key: value}, self.name).number(key) for value in inside)

    def inside(self, key: str) -> _Fields | None:
        value = self._get(key)
        if value is not None and not isinstance(value, dict):
            raise MessageError(f"{self.name}{key} must be an object")
        return None if value is None else _Fields(value, f"{key}.")


def _read_join(f: _Fields, blobs: list[bytes]) -> Join:
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


def _read_joined(f: _Fields, blobs: list[bytes]) -> Joined:
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


def _read_inputs(f: _Fields) -> Inputs:
    """A site without this field has a version that scales all examples."""
    text = f.text("inputs", 16) if "inputs" in f.fields else "scaled"
    if text not in get_args(Inputs):
        raise MessageError(f"inputs must be one of {', '.join(get_args(Inputs))}")
    return cast(Inputs, text)


def _read_work(f: _Fields, blobs: list[bytes]) -> Work:
    count = f.whole("inbox", 0, MAX_BLOBS)
    missed, at = [], count
    for item in f.sequence("missed", 64):
        if not isinstance(item, list) or len(item) != 4:
            raise MessageError("missed must hold [digest, phase, round, payloads]")
        entry = _Fields(dict(zip(("digest", "phase", "round", "payloads"), item, strict=True)), "missed.")
        size = entry.whole("payloads", 0, MAX_BLOBS)
        missed.append(
            Broadcast(
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
    )


def _read_done(f: _Fields, blobs: list[bytes]) -> Done:
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
    f = _Fields(dict(zip(("correct", "total", "loss_sum"), value, strict=True)), f"tallies.{name:.40}.")
    correct, total = f.whole_list("correct", MAX_CLASSES), f.whole_list("total", MAX_CLASSES)
    if len(correct) != len(total) or any(c > t for c, t in zip(correct, total, strict=True)):
        raise MessageError(f"tallies.{name:.40}: more hits than examples, or lists of two lengths")
    loss = math.nan if value[2] is None else f.number("loss_sum")
    return Tally(torch.tensor(correct, dtype=torch.int64), torch.tensor(total, dtype=torch.int64), loss)


_READERS: Mapping[str, Callable[[_Fields, list[bytes]], AnyMessage]] = {
    "join": _read_join,
    "joined": _read_joined,
    "work": _read_work,
    "done": _read_done,
    "ping": lambda f, blobs: Ping(f.text("run")),
    "pong": lambda f, blobs: Pong(f.text("run"), f.whole("wish", -1, 1 << 31)),
    "finish": lambda f, blobs: Finish(f.text("run")),
    "finished": lambda f, blobs: Finished(f.text("run")),
}
