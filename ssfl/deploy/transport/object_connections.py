"""The connections over which a site sends and receives the objects of messages.

TCP starts slowly on every new connection and after a pause: on a link of 10 Mbit/s and 150 ms each way it takes about
a second to reach the rate of the link. httpx's pool uses any free connection. Here an object's place in its message
selects the connection, so that a large object uses the one that carried the large object of the previous message.
Requests without objects have connections of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import final

from ssfl.deploy.transport import internals as flower


@final
class ObjectConnections:
    """Up to `number` clients, each with one request at a time; `connect` makes one when it is first needed."""

    def __init__(self, connect: Callable[[], flower.FleetHttpClient], number: int) -> None:
        self._connect = connect
        self._clients: list[flower.FleetHttpClient | None] = [None] * number
        self._free = set(range(number))
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def take(self, place: int) -> Iterator[flower.FleetHttpClient]:
        """The client of an object's place in its message; another one while that one is in use."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            number = place % len(self._clients)
            if number not in self._free:
                number = min(self._free)
            self._free.remove(number)
        try:
            yield self._client(number)
        finally:
            with self._changed:
                self._free.add(number)
                self._changed.notify()

    def close(self) -> None:
        """Close all connections; requests that are under way fail."""
        with self._changed:
            self._closed = True
            clients = [client for client in self._clients if client is not None]
        for client in clients:
            client.close()

    def _client(self, number: int) -> flower.FleetHttpClient:
        with self._changed:
            client = self._clients[number]
            if client is None:
                client = self._clients[number] = self._connect()
            if self._closed:
                client.close()
        return client
