"""Objects of an answer that are sent while the answer is being announced, which saves a round trip.

An object may be pushed only with the session id from the response to the announcement (`PushMessages`). The id is the
last field of the request, so the body of the request begins with the object's content, and ends with the session id
when it is known: protobuf allows the fields of a message in any order and in any number of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, final

from ssfl.deploy.transport import internals as flower

EARLY_BYTES = 50_000
"""Smaller objects wait for the announcement: the SuperLink often has them already."""
PIECE_BYTES = 262_144
"""Bytes of one write, which has its own timeout."""


class _NotWanted(Exception):
    """The SuperLink has the object."""


@final
class EarlyPush:
    """Pushes the objects of one answer. announced: the response of PushMessages, when it has arrived."""

    def __init__(self, node: Any, run: int, announced: Future[Any]) -> None:
        self._node, self._run, self._announced = node, run, announced

    def push(self, client: flower.FleetHttpClient, object_id: str, raw: bytes) -> None:
        """Push one object, if the SuperLink wants it. Raises ObjectPushError, or what the announcement raised."""
        if len(raw) < EARLY_BYTES and not self._wants(object_id):
            return
        try:
            request: Any = _Streamed(self._pieces(object_id, raw))
            response = client.PushObject(request)
        except _NotWanted:
            return
        if not response.stored:
            raise flower.ObjectPushError(object_id, self._run, self._announced.result().session_id)

    def _wants(self, object_id: str) -> bool:
        return object_id in self._announced.result().objects_to_push

    def _pieces(self, object_id: str, raw: bytes) -> Iterator[bytes]:
        """The request in pieces. Raises _NotWanted as soon as the SuperLink has said that it has the object."""
        body = memoryview(
            flower.PushObjectRequest(
                node=self._node, run_id=self._run, object_id=object_id, object_content=raw
            ).SerializeToString(deterministic=True)
        )
        for start in range(0, len(body), PIECE_BYTES):
            if self._announced.done() and not self._wants(object_id):
                raise _NotWanted
            yield bytes(body[start : start + PIECE_BYTES])
        if not self._wants(object_id):
            raise _NotWanted
        yield flower.PushObjectRequest(session_id=self._announced.result().session_id).SerializeToString()


@final
class _Streamed:
    """A request whose serialised form is made while it is sent."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def SerializeToString(self, deterministic: bool = False) -> Iterator[bytes]:
        return self._pieces
