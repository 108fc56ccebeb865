"""Flower's SuperLink behind a guard; run as `python -m ssfl.deploy.transport.superlink`.

Flower serves sites (Fleet API), users (Control API) and its own workers (Runtime API) on one port, and by default
does not authenticate the last two: anyone who reaches the port can start a run, that is, execute code on the server.
The guard accepts sites from everywhere, the other two only from this machine and from the networks that the operator
names, and refuses bodies over a limit before they are read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import resource
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any, final

from ssfl.deploy.federation.addresses import network_of
from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.held_requests import (
    App,
    Event,
    HeldRequests,
    Receive,
    Scope,
    Send,
    read_body,
    replay,
)
from ssfl.deploy.transport.lean_middleware import patch_middleware
from ssfl.deploy.transport.object_trees import patch_object_trees

OPEN_TO_ALL = ("/v1/fleet/",)
MAX_BODY_BYTES = 64_000_000
OPEN_BODY_BYTES = 8_000_000
"""Of requests that anyone may send. Flower splits arrays into chunks of 5 MiB, so a site's requests are short messages
or single chunks. A body is in memory before the site is authenticated."""
STALLED_SECONDS = 60.0
"""How long a body may take in addition to its bytes at the least rate; an early push waits for its announcement."""
LEAST_BYTES_A_SECOND = 10_000
"""A third of what one of two objects has on the slowest link that Flower's time limit of an upload allows."""
KEEP_ALIVE_SECONDS = 960
"""How long an idle connection is kept: longer than a site keeps it, which otherwise could send into a closed one."""
UVICORN: dict[str, Any] = {
    "access_log": False,
    "timeout_keep_alive": KEEP_ALIVE_SECONDS,  # a new connection would cost a TLS handshake for each poll
    "limit_concurrency": 10_000,  # connections; a site has up to ten
    "proxy_headers": False,  # the guard decides by the address of the peer, not by what the peer writes
}
"""Options of the HTTP server."""


class _RefusedError(Exception):
    """A body that is not read to its end."""

    def __init__(self, status: int, text: bytes) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@final
class Guard:
    """ASGI middleware. networks: addresses that may use paths that are not open to all."""

    def __init__(self, app: App, networks: Sequence[str] = (), max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._networks = [network_of(text) for text in networks]
        self._most = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body, or answer 403, 408 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        most = min(self._most, OPEN_BODY_BYTES) if path.startswith(OPEN_TO_ALL) else self._most
        if not self.admits(path, scope.get("client"), scope.get("server")):
            await _refuse(send, 403, b"not from this address")
        elif _declared(scope) > most:
            await _refuse(send, 413, b"too large")
        else:
            try:
                body = await read_body(_limited(receive, most))
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


def _limited(receive: Receive, most: int) -> Receive:
    """Raises _RefusedError where a body is over the limit, or arrives too slowly."""
    end, seen = asyncio.get_running_loop().time() + STALLED_SECONDS, 0

    async def limited() -> Event:
        nonlocal seen
        try:
            async with asyncio.timeout_at(end + seen / LEAST_BYTES_A_SECOND):
                event = await receive()
        except TimeoutError:
            raise _RefusedError(408, b"too slow") from None
        seen += len(event.get("body", b""))
        if seen > most:
            raise _RefusedError(413, b"too large")
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


def main(argv: Sequence[str] | None = None) -> None:
    """Options of this module, then `--` and the options of flower-superlink."""
    parser = argparse.ArgumentParser("ssfl.deploy.transport.superlink")
    parser.add_argument("--control-from", action="append", default=[], metavar="NETWORK")
    parser.add_argument("--max-body-bytes", type=int, default=MAX_BODY_BYTES)
    parser.add_argument("--parent-pid", type=int, default=0)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    if arguments.parent_pid:
        threading.Thread(target=_end_with, args=(arguments.parent_pid,), daemon=True).start()
    allow_files()
    patch_middleware()
    patch_object_trees()
    module = flower.patched_module("superlink")
    real = module.uvicorn

    def run(app: App, **options: Any) -> None:
        guarded = Guard(HeldRequests(app), arguments.control_from, arguments.max_body_bytes)
        real.run(app=guarded, **(options | UVICORN))

    module.uvicorn = types.SimpleNamespace(run=run)
    rest = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
    sys.argv = ["flower-superlink", *rest]
    with contextlib.suppress(KeyboardInterrupt):
        module.flower_superlink()


def allow_files() -> None:
    """Raise the limit of open files, commonly 1,024, to what the system allows: a site has up to ten connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
