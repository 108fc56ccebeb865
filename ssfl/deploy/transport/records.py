"""Converts messages of this project to the content of Flower messages and back; other content is refused."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ssfl.deploy.transport.port import INLINE_BODY_BYTES, MAX_HEAD_BYTES, Message

STYPE = "ssfl.bytes.v1"
_HEAD, _BODY = "ssfl", "ssfl-body"


class RecordsError(ValueError):
    """Content that is not a message of this project."""


def to_records(message: Message) -> RecordDict:
    """The content of a Flower message: head and short body in one ConfigRecord, a longer body as an array."""
    if len(message.body) <= INLINE_BODY_BYTES:
        return RecordDict({_HEAD: ConfigRecord({"head": message.head, "body": message.body})})
    array = Array("uint8", (len(message.body),), STYPE, message.body)
    return RecordDict({_HEAD: ConfigRecord({"head": message.head}), _BODY: ArrayRecord({"body": array})})


def from_records(content: RecordDict) -> Message:
    """The message. Raises RecordsError."""
    record = content.get(_HEAD)
    if not isinstance(record, ConfigRecord):
        raise RecordsError("not a message of ssfl")
    head, body = record.get("head"), record.get("body", b"")
    if not isinstance(head, bytes) or not isinstance(body, bytes) or len(head) > MAX_HEAD_BYTES:
        raise RecordsError("the head is missing or too long")
    arrays = content.get(_BODY)
    if isinstance(arrays, ArrayRecord) and isinstance(array := arrays.get("body"), Array):
        if body or array.stype != STYPE:
            raise RecordsError("the body is not an array of bytes")
        body = array.data
    return Message(head, body)
