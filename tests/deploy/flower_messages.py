"""Messages of Flower with a body of ssfl, and their objects."""

from __future__ import annotations

from flwr.app import Message as FlowerMessage
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.port import Message
from ssfl.deploy.transport.records import to_records


def flower_message(body: bytes | flower.Error, reply_to: str = "") -> FlowerMessage:
    """A message with a body, or with an error instead."""
    metadata = flower.Metadata(
        run_id=1,
        message_id="",
        src_node_id=2,
        dst_node_id=3,
        reply_to_message_id=reply_to,
        group_id="",
        created_at=1.0,
        ttl=9.0,
        message_type="train",
    )
    if isinstance(body, bytes):
        return make_message(metadata, to_records(Message(b"{}", body)))
    return make_message(metadata, error=body)


def contents_of(message: FlowerMessage) -> tuple[str, dict[str, bytes]]:
    """The id of a message, and its objects as they are pulled."""
    return message.object_id, {key: o.deflate() for key, o in get_all_nested_objects(message).items()}
