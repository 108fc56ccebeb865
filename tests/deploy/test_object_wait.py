"""Requests for objects that are not complete are answered when the objects arrive, and within a limited time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from flwr.proto.message_pb2 import PullObjectResponse

from ssfl.deploy.transport.object_wait import LEAST_SECONDS, WaitForObjects

PULL, PUSH = "/v1/fleet/pull-object", "/v1/runtime/push-object"


class Store:
    """An application that knows an object, whose content arrives with a push; counts what it answered."""

    def __init__(self, pushes_needed: int = 1) -> None:
        self.missing = pushes_needed
        self.asked: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        if scope["path"] == PUSH:
            self.missing -= 1
            answer = b""
        else:
            self.asked.append(body)
            here = self.missing <= 0
            answer = PullObjectResponse(
                object_found=True, object_available=here, object_content=b"content" if here else b""
            ).SerializeToString()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})


async def request(app: WaitForObjects, path: str, *pieces: bytes, gone: bool = False) -> bytes | None:
    """The body of the answer; None if there was none."""
    sent: list[Any] = []
    left = [{"type": "http.request", "body": b, "more_body": True} for b in pieces]
    left.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b""})

    async def receive() -> Any:
        return left.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    await app({"type": "http", "path": path}, receive, send)
    return b"".join(event.get("body", b"") for event in sent) if sent else None


def content(answer: bytes | None) -> bytes:
    assert answer is not None
    return bytes(PullObjectResponse.FromString(answer).object_content)


def test_an_object_is_sent_as_soon_as_it_arrives() -> None:
    async def play() -> None:
        store = Store(pushes_needed=2)
        app = WaitForObjects(store, hold_seconds=30)
        start = time.monotonic()
        pulls = [asyncio.create_task(request(app, PULL, b"object", b" 1")) for _ in range(3)]
        for _ in range(2):
            await asyncio.sleep(2 * LEAST_SECONDS)
            assert not any(pull.done() for pull in pulls)
            await request(app, PUSH)
        assert [content(answer) for answer in await asyncio.gather(*pulls)] == [b"content"] * 3
        assert time.monotonic() - start < 10
        assert store.asked == [b"object 1"] * 9  # at first, and after each push

    asyncio.run(play())


def test_the_wait_ends_with_flowers_own_answer() -> None:
    answer = asyncio.run(request(WaitForObjects(Store(), hold_seconds=0.1), PULL))
    assert answer == PullObjectResponse(object_found=True).SerializeToString()


def test_an_object_that_is_there_is_sent_at_once_and_an_unknown_one_is_not_awaited() -> None:
    async def unknown(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    start = time.monotonic()
    assert content(asyncio.run(request(WaitForObjects(Store(0), hold_seconds=30), PULL))) == b"content"
    assert asyncio.run(request(WaitForObjects(unknown, hold_seconds=30), PULL)) == b""
    assert time.monotonic() - start < 10


def test_a_client_that_has_gone_gets_no_answer() -> None:
    store = Store(0)
    assert asyncio.run(request(WaitForObjects(store), PULL, b"object", gone=True)) is None
    assert store.asked == []


def test_many_uploads_do_not_repeat_a_held_request_each_time() -> None:
    async def play() -> int:
        store = Store(pushes_needed=10_000)
        app = WaitForObjects(store, hold_seconds=5 * LEAST_SECONDS)
        pull = asyncio.create_task(request(app, PULL))
        while not pull.done():
            await request(app, PUSH)
            await asyncio.sleep(0)
        return len(store.asked)

    assert asyncio.run(play()) <= 8
