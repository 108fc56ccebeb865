"""On a long link every request that is waited for costs a round trip: which ones a site waits for."""

from __future__ import annotations

import resource
import socket
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import httpx
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from ssfl.deploy.log import EventLog
from ssfl.deploy.site import loop
from ssfl.deploy.transport import fleet, superlink
from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.fleet import REQUESTS_AT_ONCE, Credentials, FleetPort
from ssfl.deploy.transport.fleet_client import IDLE_CONNECTION_SECONDS, PROBES, fleet_client
from ssfl.deploy.transport.objects import bounded_pull, bounded_push
from ssfl.deploy.transport.port import Delivery, LinkError, Message
from tests.deploy.flower_messages import contents_of, flower_message


class AtOnce:
    """Counts how many requests are under way at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def request(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self._lock:
            self.now -= 1


def test_small_objects_are_pulled_at_the_same_time() -> None:
    together = threading.Barrier(6)

    def pull(object_id: str) -> bytes:
        together.wait(timeout=20)
        return object_id.encode()

    found = bounded_pull(list("abcdef"), pull, 100, at_once=REQUESTS_AT_ONCE)
    assert found == {key: key.encode() for key in "abcdef"}


class Small:
    def deflate(self) -> bytes:
        return b"small"


def test_small_objects_are_pushed_at_the_same_time_but_few_chunks() -> None:
    chunks, small = AtOnce(), threading.Barrier(5)

    def push(object_id: str, raw: bytes) -> None:
        if raw == b"small":
            small.wait(timeout=20)
        else:
            chunks.request()

    objects: dict[str, object] = {f"chunk {n}": ArrayChunk(memoryview(bytes([n]))) for n in range(12)}
    objects |= {f"small {n}": Small() for n in range(5)}
    bounded_push(objects, push, at_once=REQUESTS_AT_ONCE)
    assert chunks.most <= 2
    assert not objects


def test_an_object_on_its_way_is_asked_for_again_and_an_absent_one_is_not() -> None:
    asked: list[str] = []

    def pull(object_id: str) -> bytes:
        asked.append(object_id)
        if len(asked) < 3:
            raise ObjectUnavailableError(object_id)
        return b"there"

    assert bounded_pull(["a"], pull, 100) == {"a": b"there"}
    assert asked == ["a"] * 3

    def absent(object_id: str) -> bytes:
        raise flower.ObjectPullError(object_id, "not found")

    with pytest.raises(flower.ObjectPullError, match="not found"):
        bounded_pull(["a"], absent, 100)


def test_an_object_that_never_comes_ends_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(object_id: str) -> bytes:
        raise ObjectUnavailableError(object_id)

    with pytest.raises(flower.ObjectPullError, match="not sent completely"):
        bounded_pull(["a"], pull, 100, within_seconds=0.2)
    monkeypatch.setattr(flower, "PULL_MAX_TIME", 0.2)
    with pytest.raises(flower.ObjectPullError, match="not sent completely"):
        bounded_pull(["a"], pull, 100)


def test_a_site_closes_an_idle_connection_before_the_superlink_does() -> None:
    """Else a request could meet a connection that is being closed."""
    assert IDLE_CONNECTION_SECONDS < superlink.KEEP_ALIVE_SECONDS


@pytest.mark.parametrize(
    ("poll_seconds", "pause"),
    [(0.02, loop.FAST_SECONDS - 0.02), (0.3, loop.LEAST_SECONDS)],
    ids=["near", "far"],
)
def test_polls_start_at_an_interval_or_soon_on_a_long_link(
    poll_seconds: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, waits = [100.0], []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop.Pace, "seconds", lambda pace: loop.FAST_SECONDS)

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            self.set()
            return True

    class Port:
        def connect(self) -> None: ...

        def receive(self, max_body_bytes: int) -> Delivery | None:
            clock[0] += poll_seconds
            return None

        def answer(self, delivery: Delivery, message: Message | str) -> None: ...

        def close(self) -> None: ...

    assert loop.serve(Port(), lambda message: message, EventLog("site", None), Over(), 1)
    assert waits == [pytest.approx(pause)]


def answers_of(
    blocked: threading.Event, confirmed: threading.Event, failures: int = 0
) -> Callable[[httpx.Request], httpx.Response]:
    """A SuperLink with one message. Its answer to a confirmation waits for `blocked`; the first `failures` are lost."""
    left = [failures]
    message = flower_message(b"short")
    number, contents = contents_of(message)
    message.metadata.__dict__["_message_id"] = number
    head = flower.message_to_proto(flower.remove_content_from_message(message))
    tree = flower.get_object_tree(message)

    def answer(request: httpx.Request) -> httpx.Response:
        content = b""
        if request.url.path.endswith("pull-messages"):
            content = PullMessagesResponse(
                messages_list=[head], message_object_trees=[tree]
            ).SerializeToString()
        elif request.url.path.endswith("pull-object"):
            wanted = PullObjectRequest.FromString(request.read()).object_id
            content = PullObjectResponse(
                object_found=True, object_available=True, object_content=contents[wanted]
            ).SerializeToString()
        elif request.url.path.endswith("confirm-message-received"):
            assert blocked.wait(20)
            left[0] -= 1
            if left[0] >= 0:
                raise httpx.ReadTimeout("lost", request=request)
            confirmed.set()
        return httpx.Response(200, content=content, request=request)

    return answer


def port_of(answers: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch) -> FleetPort:
    """A connected site of a SuperLink that gives these answers."""

    def client(*about: object) -> flower.FleetHttpClient:
        made = fleet_client("127.0.0.1:1", None, [])
        made._client = httpx.Client(transport=httpx.MockTransport(answers))
        return made

    monkeypatch.setattr(fleet, "fleet_client", client)
    port = FleetPort(Credentials("127.0.0.1:1"))
    port.connect()
    return port


@pytest.mark.parametrize("what", ["no object tree", "not a protobuf"])
def test_an_answer_that_cannot_be_read_is_a_broken_link(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = flower_message(b"short")
    head = flower.message_to_proto(flower.remove_content_from_message(message))
    whole = PullMessagesResponse(messages_list=[head]).SerializeToString()
    content = whole if what == "no object tree" else b"\xff\xff\xff"

    def answer(request: httpx.Request) -> httpx.Response:
        pulled = request.url.path.endswith("pull-messages")
        return httpx.Response(200, content=content if pulled else b"", request=request)

    port = port_of(answer, monkeypatch)
    with pytest.raises(LinkError, match="the SuperLink's answer cannot be read"):
        port.receive(1_000)
    port.close()


@pytest.mark.parametrize("failures", [0, 2])
def test_a_message_is_worked_on_before_its_confirmation_has_arrived(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "CONFIRM_AGAIN_SECONDS", (0.01, 0.01, 0.01))
    blocked, confirmed = threading.Event(), threading.Event()
    answers = answers_of(blocked, confirmed, failures)

    port = port_of(answers, monkeypatch)
    delivery = port.receive(1_000)
    assert delivery is not None
    assert delivery.message == Message(b"{}", b"short")
    assert not confirmed.is_set()
    blocked.set()
    assert confirmed.wait(20)
    port.close()


def test_the_superlink_may_open_as_many_files_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1_024, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: asked.append(limits))
    superlink.allow_files()
    assert asked == [(4_096, 4_096)]


def test_an_idle_connection_of_a_site_is_probed() -> None:
    """By the options of the socket itself: on a server that accepts one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = fleet_client(f"127.0.0.1:{server.getsockname()[1]}", None, [])
        sockets: list[socket.socket] = []

        def trace(name: str, info: dict[str, object]) -> None:
            if name == "connection.connect_tcp.complete":
                stream: Any = info["return_value"]
                sockets.append(stream.get_extra_info("socket"))

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        client._client.post(client._base_url, extensions={"trace": trace})
        (found,) = sockets
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in PROBES.items():
            assert found.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
        client.close()
        thread.join(20)
