"""Messages come back as they were; what is no message is refused with one line, for any bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssfl.algorithms.base import ClientReport, TrainLoss
from ssfl.core.metrics import Tally
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.transport.port import MAX_HEAD_BYTES, Message

TALLY = Tally(torch.tensor([3, 0, 1]), torch.tensor([4, 0, 2]), 2.5)
REPORT = ClientReport(17, TrainLoss(0.25, 0.5), {"trained": TALLY}, 123456789, 1.5)
MESSAGES: tuple[messages.AnyMessage, ...] = (
    messages.Join(
        "run-1", 3, "model:\n  name: cnn\n", ("cat", "dog"), messages.Scaling((0.5,), (0.25,), 4, True)
    ),
    messages.Join("run-1", 3, ""),
    messages.Joined("run-1", 3, 17, 0, 2, (3, 32, 32), "ab" * 8, "ef" * 8, ("cd" * 8,)),
    messages.Work(
        "run-1",
        3,
        7,
        "train",
        2,
        9,
        (b"abc", b""),
        True,
        ("ef" * 8,),
        (messages.HeldBroadcast("ef" * 8, "store_mask", 1, (b"mask",)),),
        (2, 5),
    ),
    messages.Work("run-1", 0, 1, "score", 1, 9, ()),
    messages.Done("run-1", 3, 7, REPORT, b"payload", ("ef" * 8,)),
    messages.Ping("run-1"),
    messages.Pong("", 4),
    messages.Finish("run-1"),
    messages.Finished("run-1"),
    messages.Joined("run-1", 3, 17, 0, 2, (32,), "ab" * 8, "ef" * 8, inputs="whole"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: messages.AnyMessage) -> None:
    back = message_bytes.unpack(message_bytes.pack(message))
    if isinstance(message, messages.Done):
        assert isinstance(back, messages.Done)
        ours, theirs = back.report.tallies.pop("trained"), message.report.tallies["trained"]  # type: ignore[attr-defined]
        assert ours.correct.equal(theirs.correct)
        assert ours.total.equal(theirs.total)
        assert ours.loss_sum == theirs.loss_sum
        assert back.report.examples == 17
        assert (back.payload, back.holds, back.exchange) == (message.payload, message.holds, message.exchange)
        return
    assert back == message


def test_work_of_a_server_that_names_no_checkpoints_is_read() -> None:
    packed = message_bytes.pack(messages.Work("run-1", 0, 1, "score", 1, 9, (), checkpoints=(0,)))
    head = json.loads(packed.head)
    del head["checkpoints"]
    work = message_bytes.unpack(Message(json.dumps(head).encode(), packed.body))
    assert isinstance(work, messages.Work)
    assert work.checkpoints == ()


def test_the_bodies_of_a_broadcast_are_equal_bytes() -> None:
    """What all sites get is one object to the engine: it is uploaded once."""
    works = [messages.Work("r", c, 7, "train", 2, 9, (b"x" * 100,), False, ("ef" * 8,)) for c in range(3)]
    assert len({message_bytes.pack(w).body for w in works}) == 1
    assert len({message_bytes.pack(w).head for w in works}) == 3


def test_messages_with_the_same_payloads_share_one_body() -> None:
    """As those to sites that lack a mask, so that the server's memory does not grow with their number."""
    model, mask = b"x" * 100, messages.HeldBroadcast("ef" * 8, "store_mask", 1, (b"mask",))
    works = [messages.Work("r", c, 7, "train", 2, 9, (model,), False, ("ef" * 8,), (mask,)) for c in range(3)]
    bodies: dict[tuple[int, ...], bytes] = {}
    packed = [message_bytes.pack(work, bodies) for work in works]
    assert len({id(message.body) for message in packed}) == 1
    assert [message_bytes.unpack(message) for message in packed] == works


def changed(message: messages.AnyMessage, **fields: Any) -> Message:
    packed = message_bytes.pack(message)
    head = json.loads(packed.head)
    return Message(json.dumps(head | fields).encode(), packed.body)


def reported(**fields: Any) -> Message:
    """A reply with other fields in its report."""
    return changed(MESSAGES[5], report=json.loads(message_bytes.pack(MESSAGES[5]).head)["report"] | fields)


HOSTILE: dict[str, Callable[[], Message]] = {
    "empty": lambda: Message(b""),
    "a list": lambda: Message(b"[]"),
    "no json": lambda: Message(b"{"),
    "deep": lambda: Message(b'{"kind":' + b"[" * 100_000),
    "long head": lambda: Message(b" " * (MAX_HEAD_BYTES + 1)),
    "unknown kind": lambda: changed(MESSAGES[6], kind="execute"),
    "kind of another type": lambda: changed(MESSAGES[6], kind=7),
    "sizes that lie": lambda: changed(MESSAGES[3], sizes=[1 << 50]),
    "negative sizes": lambda: changed(MESSAGES[3], sizes=[-3, 0, 10]),
    "too many payloads": lambda: changed(MESSAGES[3], sizes=[0] * 10_000),
    "more in the inbox than there are": lambda: changed(MESSAGES[3], inbox=9),
    "missed that is no list of four": lambda: changed(MESSAGES[3], missed=[["a"]]),
    "true as a number": lambda: changed(MESSAGES[3], round=True),
    "a float as a number": lambda: changed(MESSAGES[3], round=1.5),
    "round zero": lambda: changed(MESSAGES[3], round=0),
    "infinite deviation": lambda: changed(
        MESSAGES[0], scaling={"mean": [0], "std": [1e999], "crop_padding": 0, "flip": False}
    ),
    "deviation zero": lambda: changed(
        MESSAGES[0], scaling={"mean": [0], "std": [0], "crop_padding": 0, "flip": False}
    ),
    "one class": lambda: changed(MESSAGES[2], num_classes=1),
    "inputs of an unknown kind": lambda: changed(MESSAGES[2], inputs="text"),
    "inputs that are a number": lambda: changed(MESSAGES[2], inputs=1),
    "examples zero": lambda: changed(MESSAGES[2], examples=0),
    "more hits than examples": lambda: changed(
        MESSAGES[5],
        report={
            "examples": 1,
            "train_loss": None,
            "tallies": {"t": [[2], [1], 0.0]},
            "train_flops": 0,
            "wall_seconds": 0,
        },
    ),
    "seconds above every float": lambda: reported(wall_seconds=10**400),
    "a loss above every float": lambda: reported(train_loss=[10**400, 0.0]),
    "counts whose sum overflows": lambda: reported(tallies={"t": [[0, 0], [(1 << 53) - 1] * 2, 0.0]}),
    "report that is a list": lambda: changed(MESSAGES[5], report=[1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_message_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(messages.MessageError) as caught:
        message_bytes.unpack(HOSTILE[name]())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_random_bytes_are_refused(head: bytes, body: bytes) -> None:
    with pytest.raises(messages.MessageError):
        message_bytes.unpack(Message(head, body))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=10), inside, max_size=4),
    max_leaves=8,
)


json_numbers = st.integers() | st.integers(-2, 2).map(lambda n: n * 10**400)


@given(st.sampled_from(("examples", "train_loss", "tallies", "train_flops", "wall_seconds")), st.data())
def test_any_value_in_a_report_is_read_or_refused(name: str, data: st.DataObject) -> None:
    with contextlib.suppress(messages.MessageError):
        message_bytes.unpack(
            reported(**{name: data.draw(json_values | json_numbers | st.lists(json_numbers))})
        )


@given(st.sampled_from(MESSAGES), st.data())
def test_any_value_in_any_field_is_read_or_refused(message: messages.AnyMessage, data: st.DataObject) -> None:
    packed = message_bytes.pack(message)
    head = json.loads(packed.head)
    head[data.draw(st.sampled_from(sorted(head)))] = data.draw(json_values)
    with contextlib.suppress(messages.MessageError):  # the only error that there may be
        message_bytes.unpack(Message(json.dumps(head).encode(), packed.body))
