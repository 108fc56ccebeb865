"""Pulls one message, and continues after the link has failed instead of beginning again."""

from __future__ import annotations

import time
from typing import Any, final

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.object_connections import ObjectConnections
from ssfl.deploy.transport.objects import bounded_pull, inflate
from ssfl.deploy.transport.port import Message
from ssfl.deploy.transport.records import from_records


@final
class MessageDownload:
    """The download of the first message of a response to PullMessages. at_once: requests at a time."""

    def __init__(self, response: Any, at_once: int) -> None:
        self.head: Any = flower.message_from_proto(response.messages_list[0])
        """The message without its content."""
        tree = flower.iterate_object_tree(response.message_object_trees[0])
        self._places = {node.object_id: place for place, node in enumerate(tree)}
        self._at_once = at_once
        self._contents: dict[str, bytes] = {}

    @property
    def run(self) -> int:
        """The run that the message belongs to."""
        return int(self.head.metadata.run_id)

    @property
    def number(self) -> str:
        """The message's id."""
        return str(self.head.metadata.message_id)

    @property
    def seconds_left(self) -> float:
        """How long its answer is accepted."""
        return max(0.0, float(self.head.metadata.created_at + self.head.metadata.ttl - time.time()))

    def receive(self, node: Any, connections: ObjectConnections, max_body_bytes: int) -> Message | None:
        """Pull the objects that are missing. None if there is nothing to answer: it expired or was not sent completely.

        Raises RecordsError, ValueError, KeyError or TypeError for a message that cannot be read, and httpx's errors.
        """

        def pull(object_id: str) -> bytes:
            with connections.take(self._places[object_id]) as client:
                one = flower.make_pull_object_fn_protobuf(client.PullObject, node, self.run)
                return bytes(one(object_id))

        try:
            contents = bounded_pull(
                list(self._places), pull, max_body_bytes, at_once=self._at_once, contents=self._contents
            )
        except flower.ObjectPullError:
            return None
        message = inflate(self.number, contents, max_body_bytes)
        message.metadata.__dict__["_message_id"] = self.number
        return from_records(message.content)
