"""Answers that have arrived before the deadline count, although the server receives some of them after it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ssfl.deploy.transport.port import Answer, Failure
from tests.deploy.fake_fleet import FakeFleet, make_bench
from tests.deploy.faulty import deployed, simulated


class Queue:
    """`FakeFleet.receive` for large answers: one at a time, which takes a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.arrived: list[Answer | Failure] = []
        self._receive = FakeFleet.receive

    def __call__(self, fleet: FakeFleet, tickets: Sequence[str], most: int) -> tuple[Answer | Failure, ...]:
        held = {answer.ticket for answer in self.arrived}
        self.arrived += self._receive(fleet, [t for t in tickets if t not in held], most)
        self.arrived = [answer for answer in self.arrived if answer.ticket in tickets]
        if not self.arrived:
            return ()
        fleet.time += self.seconds
        return (self.arrived.pop(0),)


def test_all_answers_that_have_arrived_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a deadline of 30 s, the last one is received after 40 s or more."""
    bench = make_bench("ssfl")
    bench.join_all()
    queue = Queue(11.0)
    monkeypatch.setattr(FakeFleet, "receive", lambda *about: queue(*about))
    weights = deployed(bench)
    assert not bench.logged("missing_replies")
    assert weights.equal(simulated("ssfl", {}))


def test_a_site_that_hangs_does_not_keep_the_server_after_the_deadline() -> None:
    bench = make_bench("ssfl")
    bench.join_all()
    bench.site(1).fault = lambda message, answer: None
    start = bench.fleet.time
    bench.run(1)
    assert bench.logged("missing_replies")
    assert bench.fleet.time - start < 4 * 31.0
