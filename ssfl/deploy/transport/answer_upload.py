"""Sends one answer, and continues after the link has failed instead of beginning again.

The SuperLink accepts one answer to a message, and deletes the message once the server knows of the answer. So it
refuses a second announcement, but still takes the objects of the first one, for a limited time after each.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.early_push import EarlyPush
from ssfl.deploy.transport.object_connections import ObjectConnections
from ssfl.deploy.transport.objects import bounded_push


@final
class AnswerUpload:
    """The upload of one reply (a message of Flower). at_once: requests at a time."""

    def __init__(self, reply: Any, at_once: int) -> None:
        self._reply, self._at_once = reply, at_once
        with flower.no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            self._tree = flower.get_object_tree(reply)
            self._objects = flower.get_all_nested_objects(reply)
        self._places = push_places(self._objects)
        self._response: Any = None
        """Of the announcement, when it has succeeded."""
        self._accepted_until = 0.0
        """Until then the SuperLink surely accepts objects that it has not stored."""

    def send(self, node: Any, client: flower.FleetHttpClient, connections: ObjectConnections) -> None:
        """Announce the answer and push its objects, or what is left of this.

        Raises ObjectPushError if the SuperLink does not accept it any longer, and httpx's errors.
        """
        continued = self._response is not None
        left = dict(self._objects)
        with ThreadPoolExecutor(1) as executor:
            announced: Future[Any] = executor.submit(self._announce, node, client)
            early = EarlyPush(node, self._reply.metadata.run_id, announced)

            def push(object_id: str, raw: bytes) -> None:
                with connections.take(self._places[object_id]) as connection:
                    self._push(early, connection, object_id, raw, continued)

            bounded_push(left, push, at_once=self._at_once)

    def _announce(self, node: Any, client: flower.FleetHttpClient) -> Any:
        if self._response is not None:
            return self._response
        head = self._reply
        if head.has_content():
            head = flower.remove_content_from_message(head)
        request = flower.PushMessagesRequest(
            node=node,
            messages_list=[flower.message_to_proto(head)],
            message_object_trees=[self._tree],
            clientapp_runtime_list=[0.0],
        )
        asked_at = time.monotonic()
        response = client.PushMessages(request)
        if self._tree.object_id not in response.objects_to_push:  # an answer that is accepted is new
            raise flower.ObjectPushError(
                self._tree.object_id, self._reply.metadata.run_id, response.session_id
            )
        self._accepted_until = asked_at + flower.OBJECT_PUSH_SESSION_TTL_SECONDS
        self._response = response
        return response

    def _push(
        self, early: EarlyPush, client: flower.FleetHttpClient, object_id: str, raw: bytes, continued: bool
    ) -> None:
        asked_at = time.monotonic()
        try:
            early.push(client, object_id, raw)
            self._accepted_until = asked_at + flower.OBJECT_PUSH_SESSION_TTL_SECONDS
        except flower.ObjectPushError:
            # The previous attempt may have stored it, and its answer was lost.
            if not continued or time.monotonic() >= self._accepted_until:
                raise
        self._objects.pop(object_id, None)


def push_places(objects: dict[str, Any]) -> dict[str, int]:
    """A place for each object (`ObjectConnections`). Chunks of a body share the first few connections."""
    return {
        object_id: 0 if isinstance(item, flower.ArrayChunk) else 2 + number
        for number, (object_id, item) in enumerate(objects.items())
    }
