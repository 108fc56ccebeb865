"""What an exchange cost: bytes from the payloads themselves, FLOPs and losses from the clients' reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssfl.algorithms.base import ClientReply, RoundPlan
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


def exchange_fields(plan: RoundPlan, replies: Sequence[ClientReply]) -> dict[str, Any]:
    """The event of one exchange, without evaluation and times.

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
    fields: dict[str, Any] = {
        "event": "round" if plan.timed else "phase",
        "phase": plan.phase,
        "round": plan.clock.round if plan.timed else plan.clock.round - 1,
        "clients": len(replies),
        "train_loss": _mean_loss(replies),
        "downlink_bytes": down,
        "uplink_bytes": sum(nbytes(r.payload) for r in replies),
        "train_flops": sum(r.report.train_flops for r in replies),
    }
    return fields | ({"peer_bytes": peer} if peer else {})


def dense_payload_bytes(parameters: int, bytes_per_value: int = 4) -> int:
    """A dense model's payload with the one part "w": what FedAvg sends, by arithmetic."""
    return HEADER_BYTES + PART_HEADER_BYTES + 1 + parameters * bytes_per_value + CHECKSUM_BYTES


def _mean_loss(replies: Sequence[ClientReply]) -> float | None:
    told = [(r.report.train_loss, r.examples) for r in replies if r.report.train_loss is not None]
    weight = sum(n for _, n in told)
    return sum(loss * n for loss, n in told) / weight if weight else None
