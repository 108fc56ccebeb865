"""The guard in front of the SuperLink: ASGI middleware that decides who may send which requests, and how many bytes.

Flower serves sites (Fleet API), users (Control API) and its own workers (Runtime API) on one port, and by default
does not authenticate the last two: anyone who reaches the port can start a run, that is, execute code on the server.
The guard accepts sites from everywhere, the other two only from this machine and from the networks that the operator
names, and refuses bodies over a limit before they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from ssfl.deploy.federation.addresses import network_of
from ssfl.deploy.transport.held_requests import App, Event, Receive, Scope, Send, read_body, replay
from ssfl.machine_memory import memory_bytes

OPEN_TO_ALL = ("/v1/fleet/",)
MAX_BODY_BYTES = 64_000_000
OPEN_BODY_BYTES = 8_000_000
"""Of requests that anyone may send. Flower splits arrays into chunks of 5 MiB, so a site's requests are short messages
or single chunks. A body is in memory before the site is authenticated."""
STALLED_SECONDS = 60.0
"""How long a body may take in addition to its bytes at the least rate; an early push waits for its announcement."""
LEAST_BYTES_A_SECOND = 10_000
"""A third of what one of two objects has on the slowest link that Flower's time limit of an upload allows."""
SHARE_OF_MEMORY = 0.5
"""Of this machine's memory, for the bodies of requests that anyone may send, all together."""


class _RefusedError(Exception):
    """A body that is not read to its end."""

    def __init__(self, status: int, text: bytes) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@final
class _Memory:
    """Counts the bytes of requests that are in memory at the same time."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._bytes = 0

    @contextlib.contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """A function to call with the size of each piece of one request's body, which it refuses over the limit.

        The request's bytes count until the block ends. A refused request frees its memory, so the others go on; if it
        waited for them instead, bodies that have partly arrived could wait for each other.
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self._bytes + count > self._most:
                raise _RefusedError(503, b"too many requests at a time")
            held += count
            self._bytes += count

        try:
            yield take
        finally:
            self._bytes -= held


@final
class Guard:
    """ASGI middleware.

    networks: addresses that may use paths that are not open to all. open_bytes: of all bodies that are in memory at the
    same time on paths that are; None: a share of this machine's memory.
    """

    def __init__(
        self,
        app: App,
        networks: Sequence[str] = (),
        max_body_bytes: int = MAX_BODY_BYTES,
        open_bytes: float | None = None,
    ) -> None:
        self._app = app
        self._networks = [network_of(text) for text in networks]
        self._most = max_body_bytes
        self._open = _Memory(SHARE_OF_MEMORY * memory_bytes() if open_bytes is None else open_bytes)
        self._trusted = _Memory(math.inf)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer 403, 408, 413 or 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        is_open = path.startswith(OPEN_TO_ALL)
        most = min(self._most, OPEN_BODY_BYTES) if is_open else self._most
        if not self.admits(path, scope.get("client"), scope.get("server")):
            await _refuse(send, 403, b"not from this address")
        elif _declared(scope) > most:
            await _refuse(send, 413, b"too large")
        else:
            with (self._open if is_open else self._trusted).request() as take:
                try:
                    body = await read_body(_limited(receive, most, take))
                except _RefusedError as error:
                    await _refuse(send, error.status, error.text, [(b"connection", b"close")])
                    return
                if body is not None:
                    await self._app(scope, replay(body, receive), send)

    def admits(self, path: str, client: Sequence[Any] | None, server: Sequence[Any] | None) -> bool:
        """Whether a peer at `client` (host, port) may use this path of `server` (host, port)."""
        if path.startswith(OPEN_TO_ALL):
            return True
        if client is None:
            return False
        try:
            peer = ipaddress.ip_address(str(client[0]).partition("%")[0])
        except ValueError:
            return False
        own = server is not None and str(client[0]) == str(server[0])
        return peer.is_loopback or own or any(peer in network for network in self._networks)


def _limited(receive: Receive, most: int, take: Callable[[int], None]) -> Receive:
    """Raises _RefusedError where a body is over the limit, or arrives too slowly. take: see `_Memory`."""
    end, seen = asyncio.get_running_loop().time() + STALLED_SECONDS, 0

    async def limited() -> Event:
        nonlocal seen
        try:
            async with asyncio.timeout_at(end + seen / LEAST_BYTES_A_SECOND):
                event = await receive()
        except TimeoutError:
            raise _RefusedError(408, b"too slow") from None
        size = len(event.get("body", b""))
        seen += size
        if seen > most:
            raise _RefusedError(413, b"too large")
        take(size)
        return event

    return limited


def _declared(scope: Scope) -> int:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(send: Send, status: int, text: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    about = [(b"content-type", b"text/plain"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": text})
