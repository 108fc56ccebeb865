"""Answers that sites have announced, and whose objects the server pulls when it is ready for them.

Flower's `HttpGrid.pull_messages` pulls all objects of all answers at once. To hold one answer in memory at a time, it
would have to be called for each site, and a poll costs milliseconds of the SuperLink. Here one request asks for all.

A site announces its answer before it is uploaded, and the upload may stop at any time. Therefore the server never waits
for one answer: an attempt to pull it ends as soon as the SuperLink has held a request for one of its objects without
result (`held_requests.py`), and other answers have their turn.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import httpx

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.objects import IncompleteError, bounded_pull, inflate

TURN_SECONDS = 10.0
"""How long an answer that arrives slowly is pulled while others are announced."""
STALLED_SECONDS = 5.0
"""Pause before the next attempt to pull an answer that does not arrive, while others may be announced."""


@dataclass
class _Head:
    """An announced answer."""

    number: str
    ids: list[str]
    arrived: set[str] = field(default_factory=set)
    """Its objects that have reached the SuperLink, as far as this is known."""
    contents: dict[str, bytes] = field(default_factory=dict)
    tried_at: float = 0.0
    next_try: float = 0.0


@final
class AnnouncedAnswers:
    """On the connection of an `HttpGrid`."""

    def __init__(self, grid: Any) -> None:
        self._client, self._node, self._run = grid._runtime_client, grid.node, grid.run.run_id
        self._heads: dict[str, _Head] = {}
        self._last = _Head("", [])
        """The head that was pulled last; only its contents are kept, so that one answer is in memory."""
        self._continued = False
        """Whether the last head is pulled first again, because its objects are arriving."""
        self._turn_ends = 0.0

    def poll(self, tickets: Sequence[str]) -> None:
        """Ask for new answers. Those to other tickets are no longer expected."""
        for ticket in self._heads.keys() - set(tickets):
            self.drop(ticket)
        if new := [ticket for ticket in tickets if ticket not in self._heads]:
            response = self._client.PullMessages(flower.PullAppMessagesRequest(message_ids=new))
            for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                ids = [node.object_id for node in flower.iterate_object_tree(tree)]
                self._heads[head.metadata.reply_to_message_id] = _Head(head.metadata.message_id, ids)

    def waiting(self, tickets: Sequence[str]) -> list[str]:
        """The announced ones in their order: the one that is arriving, then those that have waited longest.

        Without stalled ones, unless all are announced.
        """
        found = [ticket for ticket in tickets if ticket in self._heads]
        if len(found) < len(tickets):
            found = [ticket for ticket in found if time.monotonic() >= self._heads[ticket].next_try]
        return sorted(found, key=self._turn)

    def _turn(self, ticket: str) -> tuple[bool, float]:
        head = self._heads[ticket]
        return not (self._continued and head is self._last), head.tried_at

    def pull(self, ticket: str, max_bytes: int) -> Any:
        """Pull one announced answer.

        Raises IncompleteError if it has not arrived completely; its next attempt continues. Otherwise the answer is
        no longer announced. Raises TooLargeError, ObjectPullError, or ValueError if it cannot be read.
        """
        head = self._heads[ticket]
        self._begin(head)
        try:
            contents = self._pulled(head, max_bytes)
        except (IncompleteError, httpx.HTTPError):
            raise
        except BaseException:
            self.drop(ticket)
            raise
        head.contents = {}
        self.drop(ticket)
        return inflate(head.number, contents, max_bytes)

    def drop(self, ticket: str) -> None:
        """Do not expect this answer any longer."""
        if (head := self._heads.pop(ticket, None)) is not None:
            head.contents.clear()
            self.confirm(head.number)

    def confirm(self, number: str) -> None:
        """Let the SuperLink delete a message's objects; without this it keeps them until the run ends."""
        request = flower.ConfirmMessageReceivedRequest(
            node=self._node, run_id=self._run, message_object_id=number
        )
        with contextlib.suppress(httpx.HTTPError):  # a fault of the SuperLink is not one of the answer
            self._client.ConfirmMessageReceived(request)

    def _begin(self, head: _Head) -> None:
        head.tried_at = time.monotonic()
        if head is not self._last:
            self._last.contents.clear()
        if head is not self._last or not self._continued:
            self._turn_ends = head.tried_at + TURN_SECONDS
        self._last, self._continued = head, False

    def _pulled(self, head: _Head, max_bytes: int) -> dict[str, bytes]:
        """All objects. Those that have not arrived yet come first: the others would be pulled again each time."""
        pull = flower.make_pull_object_fn_protobuf(self._client.PullObject, self._node, self._run)
        before = len(head.arrived)
        missing = [object_id for object_id in head.ids if object_id not in head.arrived]
        try:
            for ids in (missing, head.ids):
                bounded_pull(ids, pull, max_bytes, within_seconds=0.0, contents=head.contents)
        finally:
            head.arrived |= head.contents.keys()
            progress, now = len(head.arrived) > before, time.monotonic()
            self._continued = progress and now < self._turn_ends
            head.next_try = 0.0 if progress else now + STALLED_SECONDS
        return head.contents
