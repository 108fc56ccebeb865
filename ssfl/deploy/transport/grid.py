"""The server's connection over Flower's Grid, with its own deadlines and poll intervals."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any, final

import httpx
from flwr.app import Message as FlowerMessage
from flwr.app import MessageType

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.announced_answers import AnnouncedAnswers
from ssfl.deploy.transport.objects import IncompleteError, TooLargeError
from ssfl.deploy.transport.patches import free_responses, patch_grid
from ssfl.deploy.transport.port import Answer, Failure, FailureKind, Message, SiteInfo
from ssfl.deploy.transport.records import RecordsError, from_records, to_records

_KINDS: dict[int, FailureKind] = {
    flower.ErrorCode.MESSAGE_UNAVAILABLE: "expired",
    flower.ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "expired",
    flower.ErrorCode.NODE_UNAVAILABLE: "offline",
}
RECEIVE_SECONDS = 2.0
"""After so long, `receive` begins no further pull: its caller has other work."""
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
        self._expires: dict[str, float] = {}
        """Until when answers are expected, by ticket."""
        self._dropped: set[str] = set()
        """Tickets that nobody waits for any longer, and that are not answered yet."""

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
        built = [
            FlowerMessage(
                to_records(m), dst_node_id=node, message_type=MessageType.TRAIN, ttl=deadline_seconds
            )
            for node, m in outgoing
        ]
        tickets = list(self._grid.push_messages(built))
        tickets += [None] * (len(built) - len(tickets))
        expires = time.monotonic() + deadline_seconds
        self._expires |= {ticket: expires for ticket in tickets if ticket}
        return tuple(ticket or None for ticket in tickets)

    def receive(self, tickets: Sequence[str], max_body_bytes: int) -> tuple[Answer | Failure, ...]:
        """The answers that have arrived; a large one alone, so that only one is in memory."""
        if self._announced is None:
            replies = self._grid.pull_messages(tickets) if tickets else ()
            return tuple(_arrived(reply.metadata.reply_to_message_id, reply) for reply in replies)
        self._drop_all_but(self._announced, tickets)
        self._poll(self._announced, [*tickets, *self._dropped])
        for ticket in self._announced.waiting(tuple(self._dropped)):
            self._end(self._announced, ticket)
        found: list[Answer | Failure] = []
        end = time.monotonic() + RECEIVE_SECONDS
        for ticket in self._announced.waiting(tickets):
            if (one := self._pull(self._announced, ticket, max_body_bytes)) is not None:
                self._end(self._announced, ticket, answered=isinstance(one, Answer))
                found.append(one)
            if (found and max_body_bytes > ONE_BY_ONE_BYTES) or time.monotonic() >= end:
                break
        return tuple(found)

    def _poll(self, announced: AnnouncedAnswers, tickets: Sequence[str]) -> None:
        try:
            announced.poll(tickets)
        except httpx.HTTPStatusError as error:
            if not error.response.is_server_error:  # else the next poll may succeed
                raise

    def _pull(self, announced: AnnouncedAnswers, ticket: str, max_body_bytes: int) -> Answer | Failure | None:
        """The answer, if it has arrived; after its deadline there is no further attempt."""
        try:
            return _arrived(ticket, announced.pull(ticket, max_body_bytes))
        except (IncompleteError, httpx.HTTPError) as error:  # a fault of the SuperLink is not one of the site
            if time.monotonic() < self._expires.get(ticket, math.inf):
                return None
            return Failure(ticket, "expired", f"it has not arrived completely: {error}")
        except flower.ObjectPullError as error:
            return Failure(ticket, "expired", f"its objects are not available: {error}")
        except TooLargeError as error:
            return Failure(ticket, "refused", str(error))
        except (ValueError, KeyError) as error:
            return Failure(ticket, "refused", f"an answer that cannot be read ({error})")

    def _drop_all_but(self, announced: AnnouncedAnswers, tickets: Sequence[str]) -> None:
        """Sites may still answer other messages; these answers are asked for, so that the SuperLink drops them."""
        for ticket in self._expires.keys() - set(tickets) - self._dropped:
            announced.confirm(ticket)
            self._dropped.add(ticket)

    def _end(self, announced: AnnouncedAnswers, ticket: str, answered: bool = False) -> None:
        """Nothing more is expected. Without an answer, the site may not have fetched the message."""
        announced.drop(ticket)
        if self._expires.pop(ticket, None) is not None and not answered and ticket not in self._dropped:
            announced.confirm(ticket)
        self._dropped.discard(ticket)


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
