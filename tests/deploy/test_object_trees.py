"""A site cannot make the SuperLink build or send an object tree that is much larger than what it has announced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from flwr.app import Message as FlowerMessage

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport import object_trees
from ssfl.deploy.transport.fleet import FleetPort
from ssfl.deploy.transport.port import Answer, Delivery, Failure, Message
from ssfl.deploy.transport.records import to_records
from tests.deploy.superlink_here import delivered, sent, superlink, until

LIMIT = 100_000_000


def announced(site: FleetPort, delivery: Delivery, levels: int, children: int) -> None:
    """Announce an answer, level by level; an object of each level is all children of one of the next level."""
    address: Any = delivery.address
    reply = FlowerMessage(to_records(Message(b"{}", b"deep")), reply_to=address.head)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    head = flower.message_to_proto(flower.remove_content_from_message(reply))
    ids = [f"{level:064x}" for level in range(levels - 1)] + [reply.object_id]
    for level, object_id in enumerate(ids):
        below = [flower.ObjectTree(object_id=child) for child in ids[max(0, level - 1) : level]]
        tree = flower.ObjectTree(object_id=object_id, children=below * children)
        request = flower.PushMessagesRequest(
            node=site._node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[0.0]
        )
        site._client.PushMessages(request)


@pytest.mark.parametrize(("levels", "children"), [(15, 2), (120, 1)])
def test_a_tree_that_grows_costs_its_site_only(levels: int, children: int) -> None:
    """One of 32,767 objects, and one that is too deep for protobuf."""
    with superlink() as here:
        server, bad, good = here.server(), here.site(), here.site()
        tickets = sent(server, [bad, good], 60.0)
        delivery = delivered(bad)
        announced(bad, delivery, levels, children)
        good.answer(delivered(good), Message(b"{}", b"good"))
        found = dict[str, Answer | Failure]()

        def receive() -> bool:
            found.update({one.ticket: one for one in server.receive(tickets_left(tickets, found), LIMIT)})
            return len(found) == 2

        until(receive)
        assert found[tickets[1]] == Answer(tickets[1], Message(b"{}", b"good"))
        failure = found[tickets[0]]
        assert isinstance(failure, Failure)
        assert failure.kind == "expired"


def tickets_left(tickets: Sequence[str], found: dict[str, Answer | Failure]) -> list[str]:
    return [ticket for ticket in tickets if ticket not in found]


def test_a_tree_within_the_limits_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    with superlink() as here:
        server, site = here.server(), here.site()
        sent(server, [site], 60.0, bytes(3_000_000))
        (root,) = [key for key, entry in here.state.object_store.store.items() if not entry.ref_count]
        tree = here.state.object_store.get_object_tree(root)
        objects = list(flower.iterate_object_tree(tree))
        assert len(objects) == here.objects
        monkeypatch.setattr(object_trees, "MOST_OBJECTS", len(objects) - 1)
        with pytest.raises(flower.patched_module("objects").NoObjectInStoreError, match="more than"):
            here.state.object_store.get_object_tree(root)
