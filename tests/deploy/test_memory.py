"""The server holds one reply at a time, and what it sends no longer than it is being sent: seen by weak references."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssfl.core import aggregate
from ssfl.core.payloads import Payload
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.protocol.payloads import _all_summable, from_bytes
from ssfl.deploy.server import exchange, outgoing_work, pending_replies
from ssfl.deploy.server.published import Published
from ssfl.deploy.server.registered_site import Site
from ssfl.deploy.transport.port import Answer, Failure, Message
from tests.contract.table import SIZES, new_rig
from tests.deploy.fake_fleet import FakeFleet, Fault, make_bench, weights_by_exchange


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed here is freed when its last reference ends."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("first", [0, len(SIZES) - 1])
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "ssfl_factored", "sparsyfed", "random_clientwise"])
def test_no_reply_is_in_memory_while_the_next_one_is_received(
    name: str, first: int, monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    """Every reply is large here, and arrives alone: in the order of clients, or in the opposite one."""
    monkeypatch.setattr(aggregate, "LARGE_BYTES", 0)
    monkeypatch.setattr(pending_replies, "HELD_IN_MEMORY_BYTES", 0)
    decode, receive, unpack = from_bytes, FakeFleet.receive, message_bytes.unpack
    replies: list[weakref.ref[Tensor | messages.AnyMessage]] = []
    most_alive, decoded = 0, 0

    def recorded(raw: bytes, layout: Any) -> Payload:
        nonlocal decoded
        payload = decode(raw, layout)
        replies.extend(weakref.ref(p.values) for p in payload.parts.values() if hasattr(p, "values"))
        decoded += 1
        return payload

    def unpacked(message: Message) -> messages.AnyMessage:
        found = unpack(message)
        if isinstance(found, messages.Done):
            replies.append(weakref.ref(found))
        return found

    def counted(fleet: FakeFleet, tickets: Sequence[str], most: int) -> tuple[Answer | Failure, ...]:
        nonlocal most_alive
        most_alive = max(most_alive, sum(r() is not None for r in replies))
        return receive(fleet, tickets, most)

    monkeypatch.setattr(exchange, "from_bytes", recorded)
    monkeypatch.setattr(message_bytes, "unpack", unpacked)
    monkeypatch.setattr(FakeFleet, "receive", counted)
    bench = make_bench(name)
    for client in range(len(SIZES)):
        bench.site(client).seconds = 2.0 + abs(client - first)
    found, expected = weights_by_exchange(bench), weights_by_exchange(new_rig(name, "group"))
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))
    assert decoded > len(SIZES)
    assert most_alive == 0


@pytest.mark.parametrize("name", ["fedavg", "dispfl", "random_clientwise"])
def test_messages_are_kept_as_bytes_only_until_all_are_sent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    steps = exchange.FleetExchange._steps

    def watched(self: Any, state: Any, start: float) -> Iterator[bool]:
        for over in steps(self, state, start):
            seen.append(len(state.outgoing.encoded))
            yield over

    monkeypatch.setattr(exchange.FleetExchange, "_steps", watched)
    make_bench(name).run(2)
    assert seen
    assert set(seen) == {0}


def test_sites_that_lack_a_mask_are_sent_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the server believes of every site that it has no mask."""
    monkeypatch.setattr(
        Site, "holds", property(lambda site: set[str](), lambda site, holds: None), raising=False
    )
    sent: list[list[int]] = []
    send = FakeFleet.send

    def counted(fleet: FakeFleet, outgoing: Any, seconds: float) -> tuple[str | None, ...]:
        works = [(message_bytes.unpack(message), message.body) for _, message in outgoing]
        sent.append([id(body) for work, body in works if isinstance(work, messages.Work) and work.missed])
        return send(fleet, outgoing, seconds)

    monkeypatch.setattr(FakeFleet, "send", counted)
    make_bench("ssfl").run(2)
    assert max(map(len, sent)) > 1
    assert all(len(set(bodies)) <= 1 for bodies in sent)


@pytest.mark.parametrize(("name", "uploads"), [("fedavg", 1), ("dispfl", len(SIZES))])
def test_large_messages_that_differ_are_sent_one_after_the_other(
    name: str, uploads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broadcast is one upload however large; models of peers are not in memory for all clients at once."""
    expected = weights_by_exchange(new_rig(name, "group"))
    monkeypatch.setattr(outgoing_work, "SENT_TOGETHER_BYTES", 1)
    sent: list[int] = []
    send = FakeFleet.send

    def counted(fleet: FakeFleet, outgoing: Any, seconds: float) -> tuple[str | None, ...]:
        works = [m for _, m in outgoing if isinstance(message_bytes.unpack(m), messages.Work)]
        sent.extend([len(works)] if works else [])
        return send(fleet, outgoing, seconds)

    monkeypatch.setattr(FakeFleet, "send", counted)
    bench = make_bench(name)
    bench.join_all()
    found = weights_by_exchange(bench)
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))
    asked = sum(sent) // len(found)
    assert len(sent) == len(found) * (uploads if uploads == 1 else asked)


def offline_once(phase: str, round_: int) -> Fault:
    """The site is not reached by one message, and by the next one it is."""
    seen: list[int] = []

    def fault(message: Message, answer: Message | str) -> Any:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and (work.phase, work.round) == (phase, round_) and not seen:
            seen.append(1)
            return Failure("", "offline", "Node Unavailable")
        return answer

    return fault


def test_who_is_asked_late_receives_what_its_peers_had_published_before(tmp_path: Path) -> None:
    """Its peers have published the models of this round when the message is made again."""
    simulated, bench = new_rig("dispfl_full", "group"), make_bench("dispfl_full", folder=tmp_path)
    (phase,) = simulated.algorithm.tasks
    weights_by_exchange(simulated)
    bench.site(2).fault = offline_once(phase, 2)
    weights_by_exchange(bench)
    assert bench.logged("no_answer"), "the fault has happened"
    assert not bench.logged("missing_replies")
    (task,) = simulated.algorithm.tasks.values()
    assert task.kept_model is not None
    states = simulated.states()
    for client in range(len(SIZES)):
        session = bench.site(client).trainer.session
        assert session is not None
        ours = task.kept_model(session.states.before(1 << 40).state)
        theirs = task.kept_model(states[client])
        assert ours is not None
        assert theirs is not None
        assert ours.equal(theirs), client


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_published_later_is_not_seen(on_disk: bool, tmp_path: Path) -> None:
    published = Published(tmp_path / "published" if on_disk else None)
    published.put(0, 1, b"first")
    then = published.as_now()
    published.put(0, 2, b"second")
    published.put(1, 2, b"other")
    assert [then(0), then(1)] == [b"first", None]
    assert [published.as_now()(client) for client in (0, 1, 2)] == [b"second", b"other", None]


def test_published_files_stay_while_a_checkpoint_names_them(tmp_path: Path) -> None:
    published = Published(tmp_path)
    kept = []
    for number in range(1, 12):
        published.put(0, number, bytes([number]))
        if number % 4 == 0:
            published.saved()
        kept.append(sorted(int(path.stem.partition("-")[2]) for path in tmp_path.iterdir()))
    assert kept[-1] == [4, 8, 10, 11]
    assert kept[2] == [2, 3]
    resumed = Published(tmp_path)
    resumed.restore({0: 8})
    assert resumed.as_now()(0) == bytes([8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_found_in_every_type(dtype: torch.dtype, bad: float) -> None:
    values = torch.linspace(-3, 3, 101).to(dtype)
    assert _all_summable(values)
    assert _all_summable(values[:0])
    values[50] = bad
    assert not _all_summable(values)
