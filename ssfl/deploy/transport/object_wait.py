"""A request for an object that is still being uploaded is answered when the object has arrived.

A message is visible before its objects are complete. Flower answers "not available" then, and every further attempt
takes a pause and a round trip. This ASGI middleware of the SuperLink holds such a request instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

from ssfl.deploy.transport import internals as flower

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PULLS = ("/v1/fleet/pull-object", "/v1/runtime/pull-object")
PUSHES = ("/v1/fleet/push-object", "/v1/runtime/push-object")
UNAVAILABLE = flower.PullObjectResponse(object_found=True).SerializeToString()
HOLD_SECONDS = 2.0
"""Longest time that a request is held; short, because a SuperLink that stops waits for open requests."""
LEAST_SECONDS = 0.02
"""Least seconds between two attempts, so that many uploads at a time do not repeat every held request."""


@final
class WaitForObjects:
    """ASGI middleware."""

    def __init__(self, app: App, hold_seconds: float = HOLD_SECONDS) -> None:
        self._app = app
        self._hold_seconds = hold_seconds
        self._arrived = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; repeat one for an object that is not available after the next upload."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path in PULLS:
            await self._pull(scope, receive, send)
            return
        await self._app(scope, receive, send)
        if path in PUSHES:
            self._arrived.set()
            self._arrived = asyncio.Event()

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return
        clock = asyncio.get_running_loop().time
        end = clock() + self._hold_seconds
        while True:
            arrived = self._arrived
            answer = await self._answer(scope, body, receive)
            left = end - clock()
            if left <= 0 or not _unavailable(answer):
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(arrived.wait(), left)
            await asyncio.sleep(LEAST_SECONDS)
        for event in answer:
            await send(event)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive) -> list[Event]:
        """The events that the application sends for this body."""
        answer: list[Event] = []
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Event:
            return unread.pop() if unread else await receive()

        async def keep(event: Event) -> None:
            answer.append(event)

        await self._app(dict(scope), replay, keep)
        return answer


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if the client has closed the connection."""
    pieces = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        pieces.append(event.get("body", b""))
        if not event.get("more_body"):
            return b"".join(pieces)


def _unavailable(answer: list[Event]) -> bool:
    return b"".join(event.get("body", b"") for event in answer) == UNAVAILABLE
