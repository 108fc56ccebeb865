"""Starlette's `BaseHTTPMiddleware` without a task group and a stream for each request.

Flower's SuperLink passes every request through eight of them, which takes most of its CPU time. They exist for
responses that are streamed and for clients that leave. Requests and responses of the paths below are single messages.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.held_requests import Event, Receive, Scope, Send, read_body, replay

_RUNTIME = (
    "confirm-message-received",
    "get-nodes",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
)
PATHS = ("/v1/fleet/", *(f"/v1/runtime/{name}" for name in _RUNTIME))
"""Beginnings of the paths whose requests are handled here; all others keep Starlette's function."""


def patch_middleware() -> None:
    """Replace `BaseHTTPMiddleware.__call__` in this process. Raises FlowerVersionError on an unknown Starlette."""
    middleware = flower.patched_module("middleware").BaseHTTPMiddleware
    if not {"app", "dispatch_func"} <= vars(middleware(None)).keys():
        raise flower.FlowerVersionError(
            "this version of Starlette has moved BaseHTTPMiddleware.app or dispatch_func"
        )
    original = middleware.__call__

    async def call(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await original(self, scope, receive, send)
        elif (body := await read_body(receive)) is not None:
            request = Request(scope, replay(body, receive))
            response = await self.dispatch_func(request, _next(self.app, body, receive))
            await response(scope, receive, send)

    middleware.__call__ = call


def _next(app: Any, body: bytes, receive: Receive) -> Any:
    """Starlette's `call_next`: the inner application's response, complete."""

    async def call_next(request: Request) -> Response:
        events: list[Event] = []

        async def keep(event: Event) -> None:
            events.append(event)

        await app(request.scope, replay(body, receive), keep)
        start, *rest = events
        response = Response(b"".join(event.get("body", b"") for event in rest), start["status"])
        response.raw_headers = list(start["headers"])
        return response

    return call_next
