"""What an exchange cost: bytes from the payloads themselves, FLOPs and losses from the clients' reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssfl.algorithms.base import ClientReply, ClientReport, RoundPlan
from ssfl.core.metrics import Tally
from ssfl.core.payloads import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    PART_HEADER_BYTES,
    SERVER,
    nbytes,
)


@dataclass(frozen=True)
class Ledger:
    """Sums since the run began."""

    downlink_bytes: int = 0
    uplink_bytes: int = 0
    peer_bytes: int = 0
    train_flops: int = 0
    checkpoint_seconds: float = 0.0
    """Of the last checkpoint only: it is reported with the exchange after it."""

    def plus(self, event: Mapping[str, Any]) -> Ledger:
        """With one more exchange's costs."""
        return Ledger(
            self.downlink_bytes + event["downlink_bytes"],
            self.uplink_bytes + event["uplink_bytes"],
            self.peer_bytes + event.get("peer_bytes", 0),
            self.train_flops + event["train_flops"],
            self.checkpoint_seconds,
        )


@dataclass
class Meter:
    """Weighs replies on their way to the aggregation, so that no more of them need be held than it holds."""

    reports: dict[int, ClientReport] = field(default_factory=dict)
    uplink_bytes: int = 0
    waited_seconds: float = 0.0
    """Time until replies were there, as opposed to what the aggregation did with them."""

    def watch(self, replies: Iterable[ClientReply]) -> Iterator[ClientReply]:
        """The same replies, weighed."""
        source = iter(replies)
        while True:
            start = time.perf_counter()
            reply = next(source, None)
            self.waited_seconds += time.perf_counter() - start
            if reply is None:
                return
            self.reports[reply.client] = reply.report
            self.uplink_bytes += nbytes(reply.payload)
            yield reply

    def tallies(self, when: str) -> dict[int, Tally]:
        """The clients' own tests of that moment."""
        return {k: r.tallies[when] for k, r in self.reports.items() if when in r.tallies}


def exchange_fields(plan: RoundPlan, meter: Meter) -> dict[str, Any]:
    """The event of one exchange, without global evaluation and times.

    Each inbox payload is charged to the edge sender -> client: the server's to downlink_bytes, other clients' to
    peer_bytes; replies are uplink_bytes.
    """
    sizes: dict[int, int] = {}
    down = peer = 0
    for instruction in plan.instructions:
        for payload in instruction.inbox:
            if id(payload) not in sizes:
                sizes[id(payload)] = nbytes(payload)
            if payload.sender == SERVER:
                down += sizes[id(payload)]
            else:
                peer += sizes[id(payload)]
    reports = list(meter.reports.values())
    fields: dict[str, Any] = {
        "event": "round" if plan.timed else "phase",
        "phase": plan.phase,
        "round": plan.clock.round if plan.timed else plan.clock.round - 1,
        "clients": len(reports),
        "train_loss": _mean_loss(reports),
        "downlink_bytes": down,
        "uplink_bytes": meter.uplink_bytes,
        "train_flops": sum(r.train_flops for r in reports),
    }
    return fields | ({"peer_bytes": peer} if peer else {}) | _received_fields(meter)


def dense_payload_bytes(parameters: int, bytes_per_value: int = 4) -> int:
    """A dense model's payload with the one part "w": what FedAvg sends, by arithmetic."""
    return HEADER_BYTES + PART_HEADER_BYTES + 1 + parameters * bytes_per_value + CHECKSUM_BYTES


def _mean_loss(reports: Sequence[ClientReport]) -> float | None:
    told = [(r.train_loss, r.examples) for r in reports if r.train_loss is not None]
    weight = sum(n for _, n in told)
    return sum(loss * n for loss, n in told) / weight if weight else None


def _received_fields(meter: Meter) -> dict[str, Any]:
    # DisPFL's authors report the models as averaged, before training, beside those after it.
    tested = [t.accuracy for t in meter.tallies("received").values() if t.examples]
    return {"received_accuracy_mean": sum(tested) / len(tested)} if tested else {}
