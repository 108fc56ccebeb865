"""Flower's middleware works the same without a task group for each request: Starlette's own is the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse

from ssfl.deploy.transport.internals import FlowerVersionError
from ssfl.deploy.transport.lean_middleware import PATHS, patch_middleware

Next = Callable[[Request], Awaitable[Response]]
STARLETTE = BaseHTTPMiddleware.__call__


@pytest.fixture
def patched() -> Iterator[None]:
    patch_middleware()
    yield
    BaseHTTPMiddleware.__call__ = STARLETTE  # type: ignore[method-assign]


class Refused(Exception):
    pass


async def translate(request: Request, call_next: Next) -> Response:
    """As Flower's outer middleware: errors become answers."""
    try:
        response = await call_next(request)
    except Refused as error:
        return JSONResponse({"error": str(error)}, status_code=409)
    response.headers["x-outer"] = request.state.seen
    return response


async def parse(request: Request, call_next: Next) -> Response:
    """As Flower's translation: reads the body, keeps something for the handler, replaces the answer."""
    request.state.seen = (await request.body()).decode()
    inner = await call_next(request)
    if inner.status_code >= 400:
        return inner
    answer = Response(f"{request.state.result}!", status_code=inner.status_code)
    answer.headers["x-inner"] = inner.headers["x-route"]
    return answer


def application() -> FastAPI:
    app = FastAPI(middleware=[Middleware(BaseHTTPMiddleware, dispatch=d) for d in (translate, parse)])

    async def handler(request: Request) -> Response:
        if request.state.seen == "refuse":
            raise Refused("no")
        if request.state.seen == "fail":
            raise KeyError("a fault of the server")
        request.state.result = request.state.seen + (await request.body()).decode()
        return Response("", status_code=201, headers={"x-route": request.url.path})

    for path in (*PATHS[1:], PATHS[0] + "anything", "/v1/control/start-run"):
        app.add_api_route(path, handler, methods=["POST"])
    return app


def send(app: Any, path: str, *pieces: bytes) -> list[dict[str, Any]]:
    """The events of the answer. The client stays until the answer is complete."""
    sent: list[dict[str, Any]] = []
    unread = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    unread.append({"type": "http.request", "body": b"", "more_body": False})

    async def play() -> None:
        done = asyncio.Event()

        async def receive() -> Any:
            if unread:
                return unread.pop(0)
            await done.wait()
            return {"type": "http.disconnect"}

        async def keep(event: Any) -> None:
            sent.append(dict(event))
            if event["type"] == "http.response.body" and not event.get("more_body"):
                done.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
        }
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "headers": [], "server": ("h", 1)}
        await app(scope | {"client": ("c", 1)}, receive, keep)

    asyncio.run(play())
    return sent


def answer_of(events: list[dict[str, Any]]) -> tuple[int, dict[bytes, bytes], bytes]:
    start, *rest = events
    return start["status"], dict(start["headers"]), b"".join(event.get("body", b"") for event in rest)


BODIES: tuple[list[bytes], ...] = ([b"abc"], [b"a", b"b" * 1000, b"c"], [], [b"refuse"])


@pytest.mark.parametrize(
    ("path", "statuses"),
    [(path, {201, 409}) for path in (*PATHS[1:], PATHS[0] + "anything", "/v1/control/start-run")]
    + [("/v1/fleet/nowhere", {404})],
)
def test_answers_are_those_of_starlettes_middleware(
    path: str, statuses: set[int], request: pytest.FixtureRequest
) -> None:
    theirs = [answer_of(send(application(), path, *pieces)) for pieces in BODIES]
    assert {status for status, *_ in theirs} == statuses
    request.getfixturevalue("patched")
    assert [answer_of(send(application(), path, *pieces)) for pieces in BODIES] == theirs


@pytest.mark.usefixtures("patched")
def test_a_fault_of_a_handler_reaches_the_servers_error_handling() -> None:
    with pytest.raises(KeyError, match="fault of the server"):
        send(application(), PATHS[1], b"fail")


@pytest.mark.usefixtures("patched")
def test_the_middleware_of_streamed_answers_is_starlettes_own() -> None:
    async def forward(request: Request, call_next: Next) -> Response:
        return await call_next(request)

    app = FastAPI(middleware=[Middleware(BaseHTTPMiddleware, dispatch=forward)])

    async def stream() -> Response:
        return StreamingResponse(iter([b"one", b"two"]))

    app.add_api_route("/v1/control/stream-logs", stream, methods=["POST"])
    events = send(app, "/v1/control/stream-logs")
    assert [event["body"] for event in events[1:] if event["body"]] == [b"one", b"two"]


@pytest.mark.usefixtures("patched")
def test_a_client_that_leaves_during_its_request_gets_no_answer() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    calls: list[Any] = []

    async def record(*about: Any) -> None:
        calls.append(about)

    middleware = BaseHTTPMiddleware(record, dispatch=translate)
    asyncio.run(middleware({"type": "http", "path": PATHS[1]}, receive, record))
    assert calls == []


def test_an_unknown_starlette_is_refused_before_anything_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: Any, app: Any, dispatch: Any = None) -> None:
        self.app, self.handler = app, dispatch

    monkeypatch.setattr(BaseHTTPMiddleware, "__init__", renamed)
    with pytest.raises(FlowerVersionError, match="dispatch_func"):
        patch_middleware()
    assert BaseHTTPMiddleware.__call__ is STARLETTE
