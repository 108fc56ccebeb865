"""Runs of the table, exchange by exchange."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ssfl.algorithms.base import ClientReply, RoundPlan
from ssfl.core.payloads import Payload
from tests.contract.table import ROUNDS, new_rig
from tests.support.rigs import Event, Rig


@dataclass(frozen=True)
class Exchanged:
    """One exchange of a run: what was known before it, what was asked and answered, what came of it."""

    rig: Rig
    before: Any
    plan: RoundPlan
    delivered: Mapping[int, tuple[Payload, ...]]
    """What each client of the plan was sent, references to peers resolved."""
    replies: list[ClientReply]
    after: Any
    event: Event


@cache
def exchanges(name: str, net: str) -> tuple[Exchanged, ...]:
    """Of a run in which everybody answers."""
    return to_the_end(new_rig(name, net))


def to_the_end(rig: Rig, rounds: int = ROUNDS) -> tuple[Exchanged, ...]:
    """All exchanges of a run; its executor is closed."""
    try:
        return tuple(exchanges_of(rig, rounds))
    finally:
        rig.executor.close()


def exchanges_of(rig: Rig, rounds: int = ROUNDS) -> Iterator[Exchanged]:
    """A run from its beginning to its end; each exchange while the clients remember what they did after it."""
    progress = rig.loop.start(rig.theta, rounds)
    plan: RoundPlan | None = rig.plan(progress.state, progress.clock)
    while plan is not None:
        before, asked = progress.state, plan
        progress, plan = rig.loop.step(progress, asked)
        rig.loop.progress = progress
        delivered, (_, replies) = rig.recorder.delivered[-1], rig.recorder.passed[-1]
        yield Exchanged(rig, before, asked, delivered, replies, progress.state, rig.events[-1])
