"""A large object uses the connection that carried the previous one; a request that hangs does not block the next."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

import httpx
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from ssfl.deploy.transport import fleet
from ssfl.deploy.transport.answer_upload import push_places
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.object_connections import ObjectConnections
from ssfl.deploy.transport.port import INLINE_BODY_BYTES, LinkError
from tests.deploy.flower_messages import flower_message


class Client:
    closed = False

    def close(self) -> None:
        self.closed = True


class Made(list[Client]):
    def __call__(self) -> Any:
        self.append(Client())
        return self[-1]


def test_an_objects_place_selects_its_connection_and_connections_are_made_when_needed() -> None:
    made = Made()
    connections = ObjectConnections(made, 3)
    with connections.take(1) as first:
        pass
    with connections.take(1) as again, connections.take(4) as other:  # 4 has the place of 1, which is in use
        assert again is first
        assert other is not first
        assert len(made) == 2
    with connections.take(4) as free:
        assert free is first


def test_no_connection_has_two_requests_at_a_time() -> None:
    made = Made()
    connections = ObjectConnections(made, 2)
    in_use: set[int] = set()
    lock, collisions = threading.Lock(), []

    def request(place: int) -> None:
        with connections.take(place) as client:
            with lock:
                collisions.append(id(client) in in_use)
                in_use.add(id(client))
            threading.Event().wait(0.002)
            with lock:
                in_use.discard(id(client))

    threads = [threading.Thread(target=request, args=(place,)) for place in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert collisions == [False] * 30
    assert len(made) == 2


def test_closing_closes_the_clients_that_were_made_and_those_that_are_made_later() -> None:
    made = Made()
    connections = ObjectConnections(made, 2)
    with connections.take(0):
        connections.close()
    with connections.take(1) as late:
        assert isinstance(late, Client)
        assert late.closed
    assert [client.closed for client in made] == [True, True]


def test_after_an_error_the_next_message_has_new_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    monkeypatch.setattr(fleet, "fleet_client", lambda *about: made())
    port = FleetPort(Credentials("127.0.0.1:1"))
    with port._objects.take(0) as hanging, pytest.raises(LinkError), port._link_errors():
        raise httpx.ReadTimeout("no answer")
    assert isinstance(hanging, Client)
    assert hanging.closed
    with port._objects.take(0) as new:
        assert new is not hanging


def test_chunks_share_a_place_that_no_small_object_has_and_places_are_the_same_each_time() -> None:
    def places(body: bytes) -> list[tuple[bool, int]]:
        objects = get_all_nested_objects(flower_message(body))
        found = push_places(objects)
        return [(isinstance(objects[key], ArrayChunk), place) for key, place in found.items()]

    large = places(bytes(INLINE_BODY_BYTES) + b"first")
    assert [place for is_chunk, place in large if is_chunk] == [0]
    small = [place for is_chunk, place in large if not is_chunk]
    assert 0 not in small
    assert len(set(small)) == len(small)
    assert places(bytes(INLINE_BODY_BYTES) + b"other") == large
    assert places(b"one") == places(b"two")
