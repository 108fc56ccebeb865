"""The guard: sites from everywhere, people and workers from where the operator says, no body over the limit."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.errors import DeployError
from ssfl.deploy.transport.guard import Guard


class Seen:
    """An application that answers 200 and remembers what body it read."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        self.body = body
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def status(
    guard: Guard,
    path: str,
    client: str,
    server: str = "10.0.0.1",
    body: Sequence[bytes] = (b"",),
    declared: int | None = None,
) -> int:
    sent: list[MutableMapping[str, Any]] = []
    pieces = [{"type": "http.request", "body": b, "more_body": n + 1 < len(body)} for n, b in enumerate(body)]

    async def receive() -> Any:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {
        "type": "http",
        "path": path,
        "client": (client, 5),
        "server": (server, 8000),
        "headers": headers,
    }
    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "client", "expected"),
    [
        ("/v1/fleet/pull-messages", "203.0.113.9", 200),
        ("/v1/control/start-run", "203.0.113.9", 403),
        ("/v1/runtime/acquire-task", "203.0.113.9", 403),
        ("/v1/fleet/../control/start-run", "203.0.113.9", 200),  # no path of the app: Flower answers 404
        ("/docs", "203.0.113.9", 403),
        ("/v1/control/start-run", "127.0.0.1", 200),
        ("/v1/control/start-run", "::1", 200),
        ("/v1/control/start-run", "10.0.0.1", 200),  # the machine's own address
        ("/v1/control/start-run", "192.0.2.7", 200),  # named by the operator
        ("/v1/control/start-run", "192.0.3.7", 403),
        ("/v1/control/start-run", "nonsense", 403),
    ],
)
def test_who_may_use_what(path: str, client: str, expected: int) -> None:
    assert status(Guard(Seen(), ["192.0.2.0/24"]), path, client) == expected


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    app = Seen()
    assert status(Guard(app, max_body_bytes=100), "/v1/fleet/push-object", "203.0.113.9", declared=101) == 413
    assert app.body is None


def test_an_undeclared_body_is_cut_off_at_the_limit() -> None:
    app = Seen()
    guard = Guard(app, max_body_bytes=100)
    assert status(guard, "/v1/fleet/push-object", "203.0.113.9", body=[b"x" * 60] * 10) == 413
    assert app.body is None


def test_a_body_in_pieces_reaches_the_application() -> None:
    app = Seen()
    assert (
        status(Guard(app, max_body_bytes=100), "/v1/fleet/push-object", "203.0.113.9", body=[b"x"] * 9) == 200
    )
    assert app.body == b"x" * 9


class Slow:
    """A request whose body arrives in pieces, when the test says so."""

    def __init__(self, guard: Guard, path: str) -> None:
        self.pieces: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.sent: list[MutableMapping[str, Any]] = []
        scope = {"type": "http", "path": path, "client": ("127.0.0.1", 5), "server": ("10.0.0.1", 8000)}
        self.task = asyncio.ensure_future(guard(scope, self.pieces.get, self._keep))

    async def _keep(self, event: MutableMapping[str, Any]) -> None:
        self.sent.append(event)

    async def piece(self, size: int, last: bool) -> None:
        self.pieces.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": not last})
        for _ in range(20):  # until the guard waits for the next piece
            await asyncio.sleep(0)

    async def status(self) -> int:
        await self.task
        return int(self.sent[0]["status"])


def test_open_bodies_that_are_in_memory_together_are_limited() -> None:
    async def requests() -> None:
        guard = Guard(Seen(), open_bytes=100)
        first, second = Slow(guard, "/v1/fleet/push-object"), Slow(guard, "/v1/fleet/push-object")
        await first.piece(60, last=False)
        await second.piece(40, last=False)
        local = Slow(guard, "/v1/runtime/push-object")
        await local.piece(1_000, last=True)
        assert await local.status() == 200  # the operator's own requests have no such limit
        await second.piece(1, last=False)
        assert await second.status() == 503
        await first.piece(40, last=True)  # the refused one's memory is free again
        assert await first.status() == 200
        third = Slow(guard, "/v1/fleet/push-object")
        await third.piece(100, last=True)
        assert await third.status() == 200

    asyncio.run(requests())


def test_an_invalid_network_is_refused() -> None:
    with pytest.raises(DeployError, match="--control-from everywhere"):
        Guard(Seen(), ["everywhere"])
