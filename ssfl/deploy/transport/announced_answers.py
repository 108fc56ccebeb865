"""Answers that sites have announced, and whose objects the server pulls when it is ready for them.

Flower's `HttpGrid.pull_messages` pulls all objects of all answers at once. To hold one answer in memory at a time, it
would have to be called for each site, and a poll costs milliseconds of the SuperLink. Here one request asks for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.objects import bounded_pull, inflate


@final
class AnnouncedAnswers:
    """On the connection of an `HttpGrid`."""

    def __init__(self, grid: Any) -> None:
        self._client, self._node, self._run = grid._runtime_client, grid.node, grid.run.run_id
        self._heads: dict[str, tuple[str, list[str]]] = {}
        """By ticket: the message id of an announced answer, and the ids of its objects."""

    def poll(self, tickets: Sequence[str]) -> list[str]:
        """The tickets whose answers are announced, in the order of `tickets`. Others are no longer expected."""
        self._heads = {ticket: self._heads[ticket] for ticket in tickets if ticket in self._heads}
        if not self._heads:
            response = self._client.PullMessages(flower.PullAppMessagesRequest(message_ids=tickets))
            for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                ids = [node.object_id for node in flower.iterate_object_tree(tree)]
                self._heads[head.metadata.reply_to_message_id] = (head.metadata.message_id, ids)
        return [ticket for ticket in tickets if ticket in self._heads]

    def pull(self, ticket: str, max_bytes: int, within_seconds: float) -> Any:
        """Pull one announced answer. Raises TooLargeError, ObjectPullError, or ValueError if it cannot be read."""
        number, ids = self._heads.pop(ticket)
        pull = flower.make_pull_object_fn_protobuf(self._client.PullObject, self._node, self._run)
        contents = bounded_pull(ids, pull, max_bytes, within_seconds=within_seconds)
        self._client.ConfirmMessageReceived(
            flower.ConfirmMessageReceivedRequest(node=self._node, run_id=self._run, message_object_id=number)
        )
        return inflate(number, contents, max_bytes)
