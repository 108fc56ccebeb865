"""A request for something that has not arrived yet is answered when it arrives.

Flower answers such a request at once, with nothing: a site asks for messages until there is one, and a message is
visible before its objects are complete. Every further attempt takes a pause and a round trip. This ASGI middleware of
the SuperLink holds the request instead, and repeats it when something has arrived.

It also passes a body on as one piece: Flower's own middleware spends a millisecond on every piece, of which there are
300 in a body of 4.5 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, final

from ssfl.deploy.transport import internals as flower

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOLD_SECONDS = 2.0
"""Longest time that a request is held; short, because a SuperLink that stops waits for open requests."""
PAUSE_SECONDS = 0.02
"""Pause before the next attempt to find a message, so that many messages at a time do not wake every site each time."""


@dataclass
class _Kind:
    """One kind of held request."""

    pulls: tuple[str, ...]
    pushes: tuple[str, ...]
    nothing: bytes
    """The body of the answer if there is nothing yet."""
    key: Callable[[bytes], bytes]
    """What a body asks for or brings; an arrival wakes the requests with its key."""
    pause_seconds: float
    """Least seconds between an arrival and the next attempt."""
    waiting: dict[bytes, set[asyncio.Event]] = field(default_factory=dict)


def _object_id(body: bytes) -> bytes:
    """The object id in a request to push or pull an object, where it precedes the content."""
    found = _ID.search(body, 0, _ID_WITHIN_BYTES)
    return found.group() if found else b""


_ID = re.compile(rb"[0-9a-f]{64}")
_ID_WITHIN_BYTES = 200


def _kinds() -> tuple[_Kind, _Kind]:
    unavailable = flower.PullObjectResponse(object_found=True).SerializeToString()
    return (
        _Kind(
            ("/v1/fleet/pull-object", "/v1/runtime/pull-object"),
            ("/v1/fleet/push-object", "/v1/runtime/push-object"),
            unavailable,
            _object_id,
            0.0,
        ),
        _Kind(
            ("/v1/fleet/pull-messages",), ("/v1/runtime/push-messages",), b"", lambda body: b"", PAUSE_SECONDS
        ),
    )


@final
class HeldRequests:
    """ASGI middleware."""

    def __init__(self, app: App, hold_seconds: float = HOLD_SECONDS) -> None:
        self._app = app
        self._hold_seconds = hold_seconds
        self._kinds = _kinds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; repeat one that found nothing after the next arrival."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        for kind in self._kinds:
            if scope["path"] in kind.pulls:
                await self._pull(kind, scope, body, receive, send)
                return
        await self._app(scope, replay(body, receive), send)
        for kind in self._kinds:
            if scope["path"] in kind.pushes:
                for arrived in kind.waiting.get(kind.key(body), ()):
                    arrived.set()

    async def _pull(self, kind: _Kind, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            answer = await self._arrival(kind, scope, body, gone)
        finally:
            gone.cancel()
        for event in answer:
            await send(event)

    async def _arrival(
        self, kind: _Kind, scope: Scope, body: bytes, gone: asyncio.Future[Event]
    ) -> list[Event]:
        """The answer's events. No further attempt for a client that has gone: it would take a message that is lost."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._hold_seconds
        with _waiting(kind, kind.key(body)) as arrived:
            while True:
                arrived.clear()
                answer = await self._answer(scope, body, gone)
                if end <= clock() or b"".join(event.get("body", b"") for event in answer) != kind.nothing:
                    return answer
                arrival = asyncio.ensure_future(arrived.wait())
                await asyncio.wait(
                    (arrival, gone), timeout=end - clock(), return_when=asyncio.FIRST_COMPLETED
                )
                arrival.cancel()
                if kind.pause_seconds and not gone.done():
                    await asyncio.wait((gone,), timeout=kind.pause_seconds)
                if gone.done():
                    return []

    async def _answer(self, scope: Scope, body: bytes, gone: asyncio.Future[Event]) -> list[Event]:
        """The events that the application sends for this body."""
        answer: list[Event] = []

        async def left() -> Event:
            return await asyncio.shield(gone)

        async def keep(event: Event) -> None:
            answer.append(event)

        await self._app(dict(scope), replay(body, left), keep)
        return answer


@contextlib.contextmanager
def _waiting(kind: _Kind, key: bytes) -> Iterator[asyncio.Event]:
    """An event that is set by every arrival of this key."""
    arrived = asyncio.Event()
    kind.waiting.setdefault(key, set()).add(arrived)
    try:
        yield arrived
    finally:
        kind.waiting[key].discard(arrived)
        if not kind.waiting[key]:
            del kind.waiting[key]


def replay(body: bytes, receive: Receive) -> Receive:
    """Receives the body as one piece, then what `receive` does."""
    unread: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Event:
        return unread.pop() if unread else await receive()

    return read


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client has closed the connection."""
    pieces = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        pieces.append(event.get("body", b""))
        if not event.get("more_body"):
            return b"".join(pieces)


async def _until_gone(receive: Receive) -> Event:
    """The event that the client has closed the connection."""
    while (event := await receive())["type"] != "http.disconnect":
        pass
    return event
