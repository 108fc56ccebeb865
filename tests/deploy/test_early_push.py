"""An object's content is sent before the announcement is answered, and its session id after it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import httpx
from flwr.proto.fleet_pb2 import PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.early_push import EARLY_BYTES, PIECE_BYTES, EarlyPush
from ssfl.deploy.transport.fleet_client import fleet_client

NODE = Node(node_id=2**63 + 1)
OBJECT, RUN = "a" * 64, 2**62
LARGE = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"


class Server(httpx.BaseTransport):
    """Reads a request piece by piece; `arrived` is set when the first one has arrived."""

    def __init__(self, stored: bool = True) -> None:
        self.pieces: list[bytes] = []
        self.arrived = threading.Event()
        self.encoding: list[str | None] = []
        self._stored = stored

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.encoding.append(request.headers.get("transfer-encoding"))
        stream: Any = request.stream
        for piece in stream:
            self.pieces.append(piece)
            self.arrived.set()
        return httpx.Response(
            200, content=PushObjectResponse(stored=self._stored).SerializeToString(), request=request
        )

    @property
    def request(self) -> PushObjectRequest:
        return PushObjectRequest.FromString(b"".join(self.pieces))


def client_of(server: Server) -> flower.FleetHttpClient:
    client = fleet_client("127.0.0.1:1", None, [])
    client._client = httpx.Client(transport=server)
    return client


def response(*wanted: str) -> PushMessagesResponse:
    return PushMessagesResponse(session_id="session", objects_to_push=wanted)


def test_the_content_is_sent_first_and_the_request_is_the_usual_one() -> None:
    server, announced = Server(), Future[Any]()
    push = EarlyPush(NODE, RUN, announced)
    thread = threading.Thread(target=push.push, args=(client_of(server), OBJECT, LARGE))
    thread.start()
    assert server.arrived.wait(20)
    thread.join(0.2)
    assert thread.is_alive()  # it waits for the session id
    assert sum(map(len, server.pieces)) > len(LARGE)
    announced.set_result(response(OBJECT))
    thread.join(20)
    assert server.request == PushObjectRequest(
        node=NODE, run_id=RUN, object_id=OBJECT, object_content=LARGE, session_id="session"
    )
    assert max(map(len, server.pieces)) == PIECE_BYTES
    assert server.encoding == ["chunked"]


def test_a_small_object_waits_for_the_announcement() -> None:
    server, announced = Server(), Future[Any]()
    push = EarlyPush(NODE, RUN, announced)
    thread = threading.Thread(target=push.push, args=(client_of(server), OBJECT, b"small"))
    thread.start()
    assert not server.arrived.wait(0.2)
    announced.set_result(response("b" * 64, OBJECT))
    thread.join(20)
    assert server.request.object_content == b"small"
    assert server.request.session_id == "session"


@pytest.mark.parametrize("raw", [b"small", LARGE])
def test_an_object_that_the_superlink_has_is_not_sent(raw: bytes) -> None:
    server, announced = Server(), Future[Any]()
    announced.set_result(response("b" * 64))
    EarlyPush(NODE, RUN, announced).push(client_of(server), OBJECT, raw)
    assert server.pieces == []


def test_an_object_is_no_longer_sent_once_the_superlink_has_said_that_it_has_it() -> None:
    announced = Future[Any]()

    class Answering(Server):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            stream: Any = request.stream
            for piece in stream:
                self.pieces.append(piece)
                if not announced.done():
                    announced.set_result(response())
            raise AssertionError("sent completely")

    server = Answering()
    EarlyPush(NODE, RUN, announced).push(client_of(server), OBJECT, LARGE)
    assert len(server.pieces) == 1


@pytest.mark.parametrize("raw", [b"small", LARGE])
def test_an_announcement_that_fails_ends_the_push_with_its_error(raw: bytes) -> None:
    announced = Future[Any]()
    announced.set_exception(httpx.ReadTimeout("no answer"))
    with pytest.raises(httpx.ReadTimeout, match="no answer"):
        EarlyPush(NODE, RUN, announced).push(client_of(Server()), OBJECT, raw)


def test_an_object_that_is_not_stored_is_an_error() -> None:
    announced = Future[Any]()
    announced.set_result(response(OBJECT))
    with pytest.raises(flower.ObjectPushError):
        EarlyPush(NODE, RUN, announced).push(client_of(Server(stored=False)), OBJECT, LARGE)


def test_what_is_sent_early_is_longer_than_the_records_around_a_body() -> None:
    assert 10_000 < EARLY_BYTES < PIECE_BYTES
