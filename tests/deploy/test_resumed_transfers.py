"""A connection that breaks costs a transfer what was under way, and no more: with Flower's real SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.fleet import FleetPort
from ssfl.deploy.transport.port import Answer, Delivery, LinkError, Message
from tests.deploy.superlink_here import Which, answered, delivered, received, sent, superlink, until

CHUNK = 5 << 20
BODY = b"".join(bytes([n]) * CHUNK for n in range(4))
OBJECTS = 4 + 5
LIMIT = 100_000_000
PULL, PUSH = "/v1/fleet/pull-object", "/v1/fleet/push-object"
CONFIRM = "/v1/fleet/confirm-message-received"

# httpx forgets a connection that is being opened when another thread closes its client after an error of the link. Its
# socket is closed when the request ends, but Python says that nobody closed it; on a busy machine in one of five runs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning"
)


def nothing(path: str, body: bytes) -> bool:
    return False


def once(which: Which) -> Which:
    """The first of these requests."""
    seen: list[str] = []

    def first(path: str, body: bytes) -> bool:
        if seen or not which(path, body):
            return False
        seen.append(path)
        return True

    return first


def again(site: FleetPort, delivery: Delivery, message: Message, between: Callable[[], object]) -> None:
    """An answer whose first attempt fails, sent again."""
    with pytest.raises(LinkError) as caught:
        site.answer(delivery, message)
    assert caught.value.again
    assert not caught.value.too_late
    between()
    site.answer(delivery, message)


@pytest.mark.parametrize("polled", [False, True])
def test_an_interrupted_upload_is_continued(polled: bool) -> None:
    """Also if the server knows of the answer already: then the SuperLink refuses a second announcement."""
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0)
        delivery, chunks = delivered(site), list[int]()

        def cut(path: str, body: bytes) -> bool:
            if path != PUSH or len(body) <= CHUNK:
                return False
            chunks.append(len(body))
            return len(chunks) == 3

        here.cut = cut
        message = Message(b"{}", BODY)
        again(site, delivery, message, lambda: polled and server.receive([ticket], LIMIT))
        assert received(server, [ticket], LIMIT) == [Answer(ticket, message)]
        assert len(chunks) <= 4 + 2, "what was under way is sent again"
        assert here.asked.count("/v1/fleet/push-messages") == 1


def test_an_object_whose_answer_was_lost_is_stored() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0)
        delivery = delivered(site)
        here.cut_answers = once(lambda path, body: path == PUSH)
        again(site, delivery, Message(b"{}", b"short"), lambda: None)
        assert received(server, [ticket], LIMIT) == [Answer(ticket, Message(b"{}", b"short"))]


def test_an_answer_that_the_superlink_has_given_up_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its push session is over: the objects that are missing are not stored."""
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 60.0)
        delivery = delivered(site)
        monkeypatch.setattr(flower, "OBJECT_PUSH_SESSION_TTL_SECONDS", 0)
        here.cut = lambda path, body: path == PUSH
        with pytest.raises(LinkError):
            site.answer(delivery, Message(b"{}", b"short"))
        here.cut = nothing
        here.state.delete_sessions_in_run(here.run)
        with pytest.raises(LinkError, match="dropped this message") as caught:
            site.answer(delivery, Message(b"{}", b"short"))
        assert caught.value.too_late


def test_an_answer_after_the_deadline_is_reported() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 3.0)
        delivery = delivered(site)
        time.sleep(delivery.seconds + 0.1)
        with pytest.raises(LinkError, match="dropped this message") as caught:
            site.answer(delivery, Message(b"{}", BODY))
        assert caught.value.too_late


def test_an_answer_for_a_run_that_was_stopped_is_not_repeated() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 60.0)
        delivery = delivered(site)
        here.stop_run()
        with pytest.raises(LinkError, match=r"RUN_STATUS|2007") as caught:
            site.answer(delivery, Message(b"{}", b"short"))
        assert caught.value.too_late


def test_an_interrupted_download_is_continued() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0, BODY)
        here.cut = once(lambda path, body: path == PULL and here.asked.count(PULL) == OBJECTS)
        with pytest.raises(LinkError) as caught:
            delivered(site)
        assert caught.value.again
        assert delivered(site).message == Message(b"{}", BODY)
        assert here.asked.count("/v1/fleet/pull-messages") == 1
        assert here.asked.count(PULL) <= OBJECTS + 8
        until(lambda: here.objects == 0)
        assert ticket


def test_a_download_is_not_continued_after_the_messages_time() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 3.0)
        here.cut = lambda path, body: path == PULL
        for _ in range(2):
            with pytest.raises(LinkError):
                delivered(site)
            time.sleep(3.1)
        here.cut = nothing
        assert site.receive(LIMIT) is None
        assert CONFIRM in here.asked
        sent(server, [site], 60.0)
        assert delivered(site).message.body == b"work"


def test_a_message_that_its_sender_dropped_is_forgotten() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 60.0)
        here.cut = lambda path, body: path == PULL
        with pytest.raises(LinkError):
            delivered(site)
        here.cut = nothing
        assert server.receive([], LIMIT) == ()
        assert site.receive(LIMIT) is None
        sent(server, [site], 60.0)
        assert delivered(site).message.body == b"work"


def test_the_thread_of_an_answer_ends() -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        (ticket,) = sent(server, [site], 60.0)
        here.cut = once(lambda path, body: path == PUSH)
        thread = answered(site, delivered(site), Message(b"{}", BODY), again=True)
        assert received(server, [ticket], LIMIT) == [Answer(ticket, Message(b"{}", BODY))]
        thread.join(20)
        assert not thread.is_alive()
