"""Replacements of Flower's functions and attributes in this process; each may be applied several times."""

from __future__ import annotations

import functools
from typing import Any

import httpx

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.objects import (
    BACKOFF_CAP_SECONDS,
    BACKOFF_SECONDS,
    bounded_push,
)


def free_responses() -> None:
    """Make flwr's clients break the cycle in httpx's responses (response, its stream, the response).

    Otherwise each response keeps an object of 5 MiB in memory until Python's garbage collector runs, after minutes.
    """
    original = flower.ProtobufClient._send
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def send(self: flower.ProtobufClient, context: Any, *, stream: bool = False) -> httpx.Response:
        response = original(self, context, stream=stream)
        if not stream:
            response.stream = httpx.ByteStream(b"")  # its content has been read
        return response

    flower.ProtobufClient._send = send  # type: ignore[method-assign]


def patch_grid() -> Any:
    """Make `HttpGrid.push_messages` free objects as it sends them; returns the module of HttpGrid."""
    module = flower.patched_module("grid")
    module.push_objects = bounded_push
    return module


def patch_executor() -> None:
    """Poll at the same intervals in the executor of a stock SuperNode, whose tasks arrive before their objects."""
    module = flower.patched_module("executor")
    original = module.pull_and_inflate_object_from_tree
    if not isinstance(original, functools.partial):
        module.pull_and_inflate_object_from_tree = functools.partial(
            original,
            initial_backoff=BACKOFF_SECONDS,
            backoff_cap=BACKOFF_CAP_SECONDS,
            max_tries_per_object=None,  # 500 short waits are too few for a large model on a slow link
        )
