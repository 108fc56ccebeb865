"""An upload that stops does not stop the server, and nothing of it stays in the SuperLink: with Flower's real one."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.transport import announced_answers
from ssfl.deploy.transport.grid import ONE_BY_ONE_BYTES
from ssfl.deploy.transport.port import Answer, Failure, Message
from tests.deploy.superlink_here import answered, delivered, received, sent, superlink, until

SMALL, LARGE = 1_000, 100_000_000
CHUNK = 5 << 20
PULL, PUSH = "/v1/runtime/pull-object", "/v1/fleet/push-object"


@pytest.mark.parametrize("most", [SMALL, LARGE])
def test_an_upload_that_stops_does_not_keep_the_answers_of_others(most: int) -> None:
    with superlink() as here:
        server, dead, alive = here.server(), here.site(), here.site()
        tickets = sent(server, [dead, alive], 60.0)
        here.cut = lambda path, body: path == PUSH
        answered(dead, delivered(dead), Message(b"{}", b"dead"))
        until(lambda: "/v1/fleet/push-messages" in here.asked)
        start = time.monotonic()
        assert server.receive(tickets, most) == ()
        here.cut = lambda path, body: False
        alive.answer(delivered(alive), Message(b"{}", b"alive"))
        assert received(server, tickets, most) == [Answer(tickets[1], Message(b"{}", b"alive"))]
        assert time.monotonic() - start < 10


def test_an_upload_that_stops_expires_at_its_own_deadline_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announced_answers, "STALLED_SECONDS", 0.0)
    with superlink() as here:
        server, dead, alive = here.server(), here.site(), here.site()
        (longer,) = sent(server, [alive], 60.0)
        (ticket,) = sent(server, [dead], 2.0)
        here.cut = lambda path, body: path == PUSH
        answered(dead, delivered(dead), Message(b"{}", b"dead"))
        (failure,) = received(server, [ticket, longer], LARGE)
        assert isinstance(failure, Failure)
        assert (failure.ticket, failure.kind) == (ticket, "expired")
        assert server.receive([], LARGE) == ()
        assert here.objects == 0


def test_answers_that_have_arrived_before_the_deadline_are_received_after_it() -> None:
    """As with many large answers near the deadline, each of which takes a second."""
    with superlink() as here:
        server, sites = here.server(), [here.site() for _ in range(3)]
        tickets = sent(server, sites, 3.0)
        for site in sites:
            site.answer(delivered(site), Message(b"{}", b"in time"))
        found = list(server.receive(tickets, LARGE))
        assert len(found) == 1
        time.sleep(3.5)
        for _ in sites[1:]:
            found += server.receive([t for t in tickets if t not in {f.ticket for f in found}], LARGE)
        assert {type(answer) for answer in found} == {Answer}
        assert {answer.ticket for answer in found} == set(tickets)


def test_an_answer_that_arrives_slowly_is_pulled_as_it_arrives_and_each_object_once() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0)
        delivery = delivered(site)
        body = b"".join(bytes([n]) * CHUNK for n in range(4))
        times: list[float] = []

        def slow(path: str, body: bytes) -> bool:
            if path == PUSH and len(body) > CHUNK:
                time.sleep(1.0)  # in the event loop: nothing else moves either
                times.append(time.monotonic())
            return False

        here.cut = slow
        answered(site, delivery, Message(b"{}", body))
        until(lambda: "/v1/fleet/push-messages" in here.asked)
        assert received(server, [ticket], LARGE) == [Answer(ticket, Message(b"{}", body))]
        assert time.monotonic() - times[-1] < 1.0
        assert here.served[PULL] == 4 + 5


def test_an_answer_that_others_interrupt_is_pulled_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced_answers, "STALLED_SECONDS", 0.0)
    with superlink(hold_seconds=0.1) as here:
        server, slow, dead = here.server(), here.site(), here.site()
        tickets = sent(server, [slow, dead], 60.0)
        arrived = threading.Event()
        chunks: list[int] = []

        def cut(path: str, body: bytes) -> bool:
            if path != PUSH or len(body) < CHUNK:
                return path == PUSH and b"dead" in body
            chunks.append(1)
            return len(chunks) > 2 and not arrived.is_set()

        here.cut = cut
        body = b"".join(bytes([n]) * CHUNK for n in range(4))
        answered(dead, delivered(dead), Message(b"{}", b"dead"))
        answered(slow, delivered(slow), Message(b"{}", body), again=True)
        for _ in range(10):
            assert server.receive(tickets, LARGE) == ()
        arrived.set()
        assert received(server, tickets, LARGE) == [Answer(tickets[0], Message(b"{}", body))]
        assert here.served[PULL] <= 2 * (4 + 5) + 5


def test_nothing_stays_of_messages_without_an_answer() -> None:
    """One that a site never fetched, one whose answer is too large, and one whose answer is no longer expected."""
    with superlink() as here:
        server, sites = here.server(), [here.site() for _ in range(3)]
        tickets = sent(server, sites, 60.0)
        sites[1].answer(delivered(sites[1]), Message(b"{}", bytes(3_000_000)))
        (failure,) = received(server, tickets, SMALL)
        assert isinstance(failure, Failure)
        assert failure.kind == "refused"
        sites[2].answer(delivered(sites[2]), Message(b"{}", bytes(2 * ONE_BY_ONE_BYTES)))
        until(lambda: here.asked.count("/v1/fleet/confirm-message-received") == 2)
        assert here.objects > 0
        assert server.receive([tickets[0]], SMALL) == ()
        assert server.receive([], SMALL) == ()
        assert here.objects == 0


def test_a_fault_of_the_superlink_is_no_refused_answer() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 5.0)
        site.answer(delivered(site), Message(b"{}", b"answer"))
        here.broken = lambda path, body: path == PULL
        (failure,) = received(server, [ticket], LARGE)
        assert isinstance(failure, Failure)
        assert (failure.ticket, failure.kind) == (ticket, "expired")


def test_an_answer_counts_although_the_superlink_does_not_delete_it() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0)
        site.answer(delivered(site), Message(b"{}", b"answer"))
        here.broken = lambda path, body: path == "/v1/runtime/confirm-message-received"
        assert received(server, [ticket], LARGE) == [Answer(ticket, Message(b"{}", b"answer"))]
