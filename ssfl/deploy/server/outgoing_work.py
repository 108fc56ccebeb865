"""Builds the work messages of one exchange when they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

from ssfl.algorithms.base import RoundPlan
from ssfl.core.layout import Layout
from ssfl.core.payloads import SERVER, Payload, Traffic
from ssfl.deploy.protocol import messages
from ssfl.deploy.protocol.payloads import from_bytes, resolved, to_bytes
from ssfl.deploy.server.published import Published
from ssfl.deploy.server.site_registry import SiteRegistry

SENT_TOGETHER_BYTES = 32_000_000
"""Messages above this size are sent one after the other, except if they are the same for several clients."""
WorkTraffic = dict[int, list[tuple[int, Traffic]]]
"""Client -> for each message to it, its sender and what it counts."""


@final
class OutgoingWork:
    """Builds the messages of a plan.

    number: of the exchange. checkpoints: the exchanges after which the existing checkpoints were saved. broadcasts: the
    broadcasts that every client must hold, by digest. encoded: payloads of the plan as bytes, by the id of the payload,
    until they have been sent to all clients.
    """

    def __init__(
        self,
        plan: RoundPlan,
        registry: SiteRegistry,
        number: int,
        checkpoints: tuple[int, ...],
        layout: Layout,
        broadcasts: Mapping[str, messages.HeldBroadcast],
        published: Published,
    ) -> None:
        self.inboxes = {i.client: tuple(i.inbox) for i in plan.instructions}
        self.encoded: dict[int, bytes] = {}
        self._plan, self._registry, self._layout = plan, registry, layout
        self._number, self._checkpoints = number, checkpoints
        self._broadcasts, self._published = broadcasts, published.as_now()

    def groups(self, to: Sequence[int]) -> Iterator[tuple[list[messages.Work], WorkTraffic]]:
        """Yields (work messages, their traffic) for these clients, in groups of at most SENT_TOGETHER_BYTES.

        The traffic counts every message that is sent, including repeats and masks that are sent again.
        """
        works: list[messages.Work] = []
        traffic: WorkTraffic = {}
        sizes: dict[tuple[int, ...], int] = {}
        for client in to:
            blobs, counted = self.blobs(client)
            work = self._work(client, blobs)
            parts = (*blobs, *(blob for missed in work.missed for blob in missed.blobs))
            body, size = tuple(map(id, parts)), sum(map(len, parts))  # equal messages are uploaded once
            if works and body not in sizes and sum(sizes.values()) + size > SENT_TOGETHER_BYTES:
                yield works, traffic
                works, traffic, sizes = [], {}, {}
            sizes[body] = size
            works.append(work)
            again = [from_bytes(blob, self._layout) for missed in work.missed for blob in missed.blobs]
            traffic[client] = counted + [(SERVER, Traffic.of(payload)) for payload in again]
        if works:
            yield works, traffic

    def blobs(self, client: int) -> tuple[tuple[bytes, ...], list[tuple[int, Traffic]]]:
        """The payloads to a client as bytes, and the sender and traffic of each."""
        blobs: list[bytes] = []
        traffic = []
        for message in self.inboxes[client]:
            payload = resolved(message, self._plan, self._peer)
            known = self.encoded.get(id(payload))
            blobs.append(to_bytes(payload, self._layout) if known is None else known)
            if payload is message:  # the plan keeps it alive, so its id is unique
                self.encoded[id(payload)] = blobs[-1]
            traffic.append((payload.sender, Traffic.of(payload)))
        return tuple(blobs), traffic

    def _peer(self, client: int) -> Payload | None:
        raw = self._published(client)
        return None if raw is None else from_bytes(raw, self._layout)

    def _work(self, client: int, blobs: tuple[bytes, ...]) -> messages.Work:
        plan, holds = self._plan, self._registry.clients[client].holds
        return messages.Work(
            self._registry.run,
            client,
            self._number,
            plan.phase,
            plan.clock.round,
            plan.clock.total,
            blobs,
            plan.publish,
            tuple(self._broadcasts),
            tuple(broadcast for digest, broadcast in self._broadcasts.items() if digest not in holds),
            self._checkpoints,
        )
