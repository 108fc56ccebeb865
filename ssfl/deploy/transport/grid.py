"""The server's connection over Flower's Grid, with its own deadlines and poll intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

import httpx
from flwr.app import Message as FlowerMessage
from flwr.app import MessageType

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.announced_answers import AnnouncedAnswers
from ssfl.deploy.transport.objects import TooLargeError
from ssfl.deploy.transport.patches import free_responses, patch_grid
from ssfl.deploy.transport.port import Answer, Failure, FailureKind, Message, SiteInfo
from ssfl.deploy.transport.records import RecordsError, from_records, to_records

_KINDS: dict[int, FailureKind] = {
    flower.ErrorCode.MESSAGE_UNAVAILABLE: "expired",
    flower.ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "expired",
    flower.ErrorCode.NODE_UNAVAILABLE: "offline",
}
ONE_BY_ONE_BYTES = 4_000_000
"""Answers that may be larger than this are pulled one at a time, so that only one is in memory."""


@final
class GridPort:
    """`ServerPort` on the `grid` that Flower passes to a ServerApp."""

    def __init__(self, grid: Any) -> None:
        module = patch_grid()
        free_responses()
        self._grid = grid
        # The grid of Flower's simulation runtime has no SuperLink, and hands over messages in memory.
        self._announced = AnnouncedAnswers(grid) if isinstance(grid, module.HttpGrid) else None
        self._deadline_seconds = 0.0

    def sites(self) -> tuple[SiteInfo, ...]:
        """All nodes that Flower counts as online."""
        nodes = self._grid.get_nodes() if hasattr(self._grid, "get_nodes") else ()
        found = [
            SiteInfo(
                int(n.node_id),
                hashlib.sha256(n.public_key).hexdigest(),
                str(n.name or ""),
                str(n.last_activated_at or ""),
            )
            for n in nodes
        ]
        return tuple(sorted(found, key=lambda site: site.node))

    def send(
        self, outgoing: Sequence[tuple[int, Message]], deadline_seconds: float
    ) -> tuple[str | None, ...]:
        """Send messages; equal contents are uploaded once. Returns a ticket for each message."""
        if not outgoing:
            return ()
        self._deadline_seconds = max(self._deadline_seconds, deadline_seconds)
        built = [
            FlowerMessage(
                to_records(m), dst_node_id=node, message_type=MessageType.TRAIN, ttl=deadline_seconds
            )
            for node, m in outgoing
        ]
        tickets = list(self._grid.push_messages(built))
        tickets += [None] * (len(built) - len(tickets))
        return tuple(ticket or None for ticket in tickets)

    def receive(self, tickets: Sequence[str], max_body_bytes: int) -> tuple[Answer | Failure, ...]:
        """The answers that have arrived; a large one alone, so that only one is in memory."""
        if not tickets:
            return ()
        if self._announced is None:
            replies = self._grid.pull_messages(tickets)
            return tuple(_arrived(reply.metadata.reply_to_message_id, reply) for reply in replies)
        announced = self._poll(self._announced, tickets)
        if max_body_bytes > ONE_BY_ONE_BYTES:
            announced = announced[:1]
        return tuple(self._pull(self._announced, ticket, max_body_bytes) for ticket in announced)

    def _poll(self, announced: AnnouncedAnswers, tickets: Sequence[str]) -> list[str]:
        try:
            return announced.poll(tickets)
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:  # the next poll may succeed
                return []
            raise

    def _pull(self, announced: AnnouncedAnswers, ticket: str, max_body_bytes: int) -> Answer | Failure:
        # A site that uploads an announced answer slowly delays the others by one deadline at most.
        try:
            return _arrived(ticket, announced.pull(ticket, max_body_bytes, self._deadline_seconds))
        except flower.ObjectPullError as error:
            return Failure(ticket, "expired", f"its objects are not available: {error}")
        except TooLargeError as error:
            return Failure(ticket, "refused", str(error))
        except (httpx.HTTPStatusError, httpx.TransportError, ValueError, KeyError) as error:
            return Failure(ticket, "refused", f"an answer that cannot be read ({error})")


def _arrived(ticket: str, reply: Any) -> Answer | Failure:
    """The content of a reply. ticket: the one that the SuperLink has checked; the reply may name another."""
    if reply.has_error():
        kind = _KINDS.get(reply.error.code, "failed")
        reason = str(reply.error.reason or f"code {reply.error.code}")
        return Failure(ticket, "refused" if "refused: " in reason else kind, reason)
    try:
        return Answer(ticket, from_records(reply.content))
    except RecordsError as error:
        return Failure(ticket, "refused", str(error))
