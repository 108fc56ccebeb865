"""The costs of exchanges: bytes as counted by the exchange, FLOPs and losses from the clients' reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from ssfl.algorithms.base import ClientReply, ClientReport, RoundPlan
from ssfl.core.metrics import Tally
from ssfl.core.payloads import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    PART_HEADER_BYTES,
    SERVER,
    Traffic,
)


@dataclass(frozen=True)
class Ledger:
    """Sums since the start of the run."""

    downlink_bytes: int = 0
    uplink_bytes: int = 0
    peer_bytes: int = 0
    train_flops: int = 0
    checkpoint_seconds: float = 0.0
    """Seconds of the last checkpoint only, which are reported with the next exchange."""

    def plus(self, event: Mapping[str, Any]) -> Ledger:
        """The ledger with the costs of one more exchange."""
        return Ledger(
            self.downlink_bytes + event["downlink_bytes"],
            self.uplink_bytes + event["uplink_bytes"],
            self.peer_bytes + event.get("peer_bytes", 0),
            self.train_flops + event["train_flops"],
            self.checkpoint_seconds,
        )


@final
@dataclass(frozen=True)
class ClientLink:
    """A client's network link, to compute the time of messages."""

    mbits: float
    """Mbit/s (10^6 bits per second), in either direction; above 0."""
    round_trip_ms: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """Seconds of a message and its answer, `nbytes` together, one after the other."""
        return nbytes * 8 / (self.mbits * 1e6) + self.round_trip_ms / 1e3


@final
@dataclass
class Meter:
    """Counts one exchange: the bytes that it sends and receives, and the reports in its replies."""

    asked: int = 0
    """Number of clients in the plan."""
    reports: dict[int, ClientReport] = field(default_factory=dict)
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    peer_bytes: int = 0
    downlink_metadata_bytes: int = 0
    """The part of `downlink_bytes` that is not values, scores or mask bits: headers, digests, scales, supports."""
    uplink_metadata_bytes: int = 0
    peer_metadata_bytes: int = 0
    by_client: dict[int, int] = field(default_factory=dict)
    """Bytes to and from each client, including those from other clients."""
    waited_seconds: float = 0.0
    """Time spent waiting for replies, without their aggregation."""

    def sent(self, sender: int, client: int, traffic: Traffic) -> None:
        """Count a message to a client: `downlink_bytes` if the server sent it, `peer_bytes` if a client did."""
        if sender == SERVER:
            self.downlink_bytes += traffic.nbytes
            self.downlink_metadata_bytes += traffic.metadata_nbytes
        else:
            self.peer_bytes += traffic.nbytes
            self.peer_metadata_bytes += traffic.metadata_nbytes
        self.by_client[client] = self.by_client.get(client, 0) + traffic.nbytes

    def received(self, client: int, traffic: Traffic) -> None:
        """Count a client's reply."""
        self.uplink_bytes += traffic.nbytes
        self.uplink_metadata_bytes += traffic.metadata_nbytes
        self.by_client[client] = self.by_client.get(client, 0) + traffic.nbytes

    def watch(self, replies: Iterable[ClientReply]) -> Iterator[ClientReply]:
        """Yields the same replies and records their reports; keeps no reply in memory."""
        source = iter(replies)
        while True:
            start = time.perf_counter()
            reply = next(source, None)
            self.waited_seconds += time.perf_counter() - start
            if reply is None:
                return
            self.reports[reply.client] = reply.report
            yield reply
            del reply  # before the next one is received

    def tallies(self, when: str) -> dict[int, Tally]:
        """Client -> its own test at this moment."""
        return {k: r.tallies[when] for k, r in self.reports.items() if when in r.tallies}


def exchange_fields(plan: RoundPlan, meter: Meter, link: ClientLink | None = None) -> dict[str, Any]:
    """The event of one exchange, without global evaluation and times.

    link: the link of every client; all are used at the same time, so the client with most bytes determines the time.
    """
    reports = list(meter.reports.values())
    fields: dict[str, Any] = {
        "event": "round" if plan.timed else "phase",
        "phase": plan.phase,
        "round": plan.clock.round if plan.timed else plan.clock.round - 1,
        "clients": len(reports),
        **_mean_losses(reports),
        "downlink_bytes": meter.downlink_bytes,
        "uplink_bytes": meter.uplink_bytes,
        "downlink_metadata_bytes": meter.downlink_metadata_bytes,
        "uplink_metadata_bytes": meter.uplink_metadata_bytes,
        "train_flops": sum(r.train_flops for r in reports),
    }
    if meter.asked > len(reports):
        fields["missing_replies"] = meter.asked - len(reports)
    if meter.peer_bytes:
        fields |= {"peer_bytes": meter.peer_bytes, "peer_metadata_bytes": meter.peer_metadata_bytes}
    if link is not None:
        fields["link_seconds"] = link.seconds(max(meter.by_client.values(), default=0))
    return fields | _received_fields(meter)


def dense_payload_bytes(parameters: int, bytes_per_value: int = 4) -> int:
    """Bytes of FedAvg's message: a dense model in one part "w"."""
    return HEADER_BYTES + PART_HEADER_BYTES + 1 + parameters * bytes_per_value + CHECKSUM_BYTES


def _mean_losses(reports: Sequence[ClientReport]) -> dict[str, float | None]:
    """The clients' mean losses, weighted by their examples; None if no client trained."""
    trained = [(r.train_loss, r.examples) for r in reports if r.train_loss is not None]
    weight = sum(n for _, n in trained)
    if not weight:
        return {"train_loss_last_epoch": None, "train_loss_all_epochs": None}
    return {
        "train_loss_last_epoch": sum(loss.last_epoch * n for loss, n in trained) / weight,
        "train_loss_all_epochs": sum(loss.all_epochs * n for loss, n in trained) / weight,
    }


def _received_fields(meter: Meter) -> dict[str, Any]:
    # DisPFL's authors report the averaged models before training, in addition to the trained ones.
    tested = [t.accuracy for t in meter.tallies("received").values() if t.examples]
    return {"received_accuracy_mean": sum(tested) / len(tested)} if tested else {}
