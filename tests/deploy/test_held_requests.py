"""Requests for what is not there yet are answered when it arrives, and within a limited time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node

from ssfl.deploy.transport.held_requests import PAUSE_SECONDS, HeldRequests

PULL, PUSH = "/v1/fleet/pull-object", "/v1/runtime/push-object"
PULL_MESSAGE, PUSH_MESSAGE = "/v1/fleet/pull-messages", "/v1/runtime/push-messages"
ONE, OTHER = "1" * 64, "2" * 64
NODE = Node(node_id=2**63)


def pull_of(object_id: str) -> bytes:
    return PullObjectRequest(node=NODE, run_id=2**62, object_id=object_id).SerializeToString(
        deterministic=True
    )


def push_of(object_id: str) -> bytes:
    request = PushObjectRequest(node=NODE, run_id=2**62, object_id=object_id, object_content=b"3" * 1_000)
    return request.SerializeToString(deterministic=True)


class Store:
    """An application that knows two objects, whose content arrives with a push, and messages, which it gives once."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)
        self.messages: list[bytes] = []
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        assert not event.get("more_body")
        answer = b""
        if scope["path"] == PUSH:
            self.there.add(PushObjectRequest.FromString(event["body"]).object_id)
        elif scope["path"] == PULL:
            wanted = PullObjectRequest.FromString(event["body"]).object_id
            self.asked.append(wanted)
            here = wanted in self.there
            answer = PullObjectResponse(
                object_found=True, object_available=here, object_content=b"content" if here else b""
            ).SerializeToString()
        elif scope["path"] == PUSH_MESSAGE:
            self.messages.append(event["body"])
        elif scope["path"] == PULL_MESSAGE:
            self.asked.append("message")
            answer = self.messages.pop() if self.messages else b""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})


class Client:
    """Sends requests; `leave` closes its connection."""

    def __init__(self, app: HeldRequests) -> None:
        self._app = app
        self._left = asyncio.Event()

    def leave(self) -> None:
        self._left.set()

    async def request(self, path: str, *pieces: bytes) -> bytes | None:
        """The body of the answer; None if there was none."""
        sent: list[Any] = []
        unread = [{"type": "http.request", "body": b, "more_body": True} for b in pieces]
        unread.append({"type": "http.request", "body": b""})

        async def receive() -> Any:
            if unread:
                return unread.pop(0)
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            sent.append(event)

        await self._app({"type": "http", "path": path}, receive, send)
        return b"".join(event.get("body", b"") for event in sent) if sent else None


def content(answer: bytes | None) -> bytes:
    assert answer is not None
    return bytes(PullObjectResponse.FromString(answer).object_content)


async def moment() -> None:
    """Long enough for every request to reach the store."""
    await asyncio.sleep(3 * PAUSE_SECONDS)


def test_an_object_is_sent_when_it_arrives_and_another_one_does_not_repeat_its_requests() -> None:
    async def play() -> None:
        store = Store()
        client = Client(HeldRequests(store, hold_seconds=30))
        start = time.monotonic()
        body = pull_of(ONE)
        pulls = [asyncio.create_task(client.request(PULL, body[:7], body[7:])) for _ in range(3)]
        for object_id in (OTHER, ONE):
            await moment()
            assert not any(pull.done() for pull in pulls)
            assert store.asked == [ONE] * 3
            await client.request(PUSH, push_of(object_id))
        assert [content(answer) for answer in await asyncio.gather(*pulls)] == [b"content"] * 3
        assert time.monotonic() - start < 10
        assert store.asked == [ONE] * 6  # at first, and after its push

    asyncio.run(play())


def test_a_message_is_sent_when_it_arrives() -> None:
    async def play() -> None:
        store = Store()
        client = Client(HeldRequests(store, hold_seconds=30))
        start = time.monotonic()
        pulls = [asyncio.create_task(client.request(PULL_MESSAGE, b"node")) for _ in range(2)]
        await moment()
        await client.request(PUSH_MESSAGE, b"first")
        await moment()
        assert sorted(pull.done() for pull in pulls) == [False, True]
        await client.request(PUSH_MESSAGE, b"second")
        assert sorted(filter(None, await asyncio.gather(*pulls))) == [b"first", b"second"]
        assert time.monotonic() - start < 10

    asyncio.run(play())


def test_many_messages_at_a_time_do_not_repeat_a_held_request_each_time() -> None:
    async def play() -> int:
        store = Store()
        client = Client(HeldRequests(store, hold_seconds=5 * PAUSE_SECONDS))
        pull = asyncio.create_task(client.request(PULL_MESSAGE))
        while not pull.done():
            await client.request(PUSH_MESSAGE)
            store.messages.clear()
            await asyncio.sleep(0)
        return len(store.asked)

    assert asyncio.run(play()) <= 8


def test_a_message_is_not_given_to_a_client_that_has_left() -> None:
    async def play() -> None:
        store = Store()
        app = HeldRequests(store, hold_seconds=30)
        gone = Client(app)
        pull = asyncio.create_task(gone.request(PULL_MESSAGE))
        await moment()
        gone.leave()
        assert await asyncio.wait_for(pull, 10) is None
        there = Client(app)
        await there.request(PUSH_MESSAGE, b"message")
        assert store.asked == ["message"]
        assert await there.request(PULL_MESSAGE) == b"message"

    asyncio.run(play())


def test_the_wait_ends_with_flowers_own_answer() -> None:
    async def play() -> tuple[bytes | None, bytes | None]:
        client = Client(HeldRequests(Store(), hold_seconds=0.1))
        return await client.request(PULL, pull_of(ONE)), await client.request(PULL_MESSAGE)

    nothing = PullObjectResponse(object_found=True).SerializeToString()
    assert asyncio.run(play()) == (nothing, b"")


def test_an_object_that_is_there_is_sent_at_once_and_an_unknown_one_is_not_awaited() -> None:
    async def unknown(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(
            {"type": "http.response.body", "body": PullObjectResponse().SerializeToString() or b"\x08\x00"}
        )

    async def play() -> None:
        start = time.monotonic()
        there = Client(HeldRequests(Store(ONE), hold_seconds=30))
        assert content(await there.request(PULL, pull_of(ONE))) == b"content"
        assert await Client(HeldRequests(unknown, hold_seconds=30)).request(PULL, pull_of(ONE)) == b"\x08\x00"
        assert time.monotonic() - start < 10

    asyncio.run(play())


def test_a_client_that_has_left_before_its_request_was_complete_gets_no_answer() -> None:
    async def play() -> None:
        store = Store(ONE)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            raise AssertionError(event)

        await HeldRequests(store)({"type": "http", "path": PULL}, receive, send)
        assert store.asked == []

    asyncio.run(play())


def test_the_key_of_a_request_is_its_object_id() -> None:
    """Also if a body holds more ids, as the content of an object with children does."""
    from ssfl.deploy.transport import held_requests

    content = (OTHER * 3).encode()
    push = PushObjectRequest(node=NODE, run_id=1, object_id=ONE, object_content=content).SerializeToString()
    for body in (pull_of(ONE), push, push_of(ONE)):
        assert held_requests._object_id(body) == ONE.encode()
    assert held_requests._object_id(PullMessagesRequest(node=NODE).SerializeToString()) == b""
