"""Exchanges without any reply: a training round is skipped; another phase is repeated and then stops the run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ssfl.algorithms.base import Clock, Instruction, Probe, RoundPlan
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP
from ssfl.engine.loop import ATTEMPTS, NoReplyError
from ssfl.engine.simulator import SeededAbsence
from ssfl.wire.message import encode
from tests.support.memories import same_memory, same_value
from tests.support.rigs import Rig, float_data, make_rig, payload_in, tiny_net

FIT = FitSpec(1, 8, ExponentialDecay(0.1, 0.99))
SIZES = (13, 8, 1, 21, 5)


@dataclass
class SilentTimes:
    """No client answers in a phase (of a round), the first `times` times."""

    phase: str
    round: int
    times: int
    asked: list[str] = field(default_factory=list)

    def __call__(self, plan: RoundPlan) -> Collection[int]:
        self.asked.append(plan.phase)
        here = (plan.phase, plan.clock.round) == (self.phase, self.round) and self.times > 0
        self.times -= here
        return [i.client for i in plan.instructions] if here else ()


def method_of(name: str) -> Any:
    return {
        "fedavg": FedAvg(FIT, 3),
        "fedavg_ft": FedAvg(FIT, 3, fine_tune=FIT),
        "ssfl": SSFL(FIT, 3, Discovery(Probe(SNIP, 1, 8), 0.3)),
        "dispfl": DisPFL(FIT, 0.3, neighbour_count=2),
        "local": LocalTraining(FIT),
    }[name]


def rig_with(name: str, kind: str, silence: SilentTimes) -> Rig:
    missing: dict[str, Any] = {kind: silence}
    return make_rig(method_of(name), float_data(SIZES), tiny_net("batch"), **missing)


both_kinds = pytest.mark.parametrize("kind", ["absent", "lost"])


# ── a training round ─────────────────────────────────────────────────────────────────────────────────────────────
@both_kinds
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "dispfl", "local"])
def test_a_training_round_without_a_reply_counts_and_changes_no_state(name: str, kind: str) -> None:
    rig = rig_with(name, kind, SilentTimes("train", 2, 1))
    progress = rig.loop.start(rig.theta, 3)
    while progress.clock.round < 2:
        progress = rig.step(progress)
    event_before, before = rig.events[-1], progress
    plan = rig.plan(progress.state, progress.clock)
    progress, following = rig.loop.step(progress, plan)
    assert progress.state is before.state
    assert progress.scoreboard is before.scoreboard
    assert progress.clock.round == 3
    assert following is not None
    assert following.clock.round == 3
    event = rig.events[-1]
    asked = len(plan.instructions)
    expected = {"event": "round", "round": 2, "clients": 0, "missing_replies": asked}
    expected |= dict.fromkeys(("train_loss_last_epoch", "train_loss_all_epochs"))
    assert {field: event[field] for field in expected} == expected
    assert (event["uplink_bytes"], event["train_flops"]) == (0, 0)
    sent = rig.recorder.delivered[-1]
    lengths = sum(len(encode(payload)) for inbox in sent.values() for payload in inbox)
    assert event["downlink_bytes"] + event.get("peer_bytes", 0) == lengths
    assert progress.ledger.downlink_bytes == before.ledger.downlink_bytes + event["downlink_bytes"]
    for same in ("global_accuracy", "global_loss", "density"):
        assert event[same] == event_before[same]
    if kind == "absent":
        ours, theirs = progress.client_memories, before.client_memories
        assert ours.keys() == theirs.keys()
        assert all(same_memory(ours[c].load(), theirs[c].load()) for c in theirs)
    assert rig.loop.run(progress).clock.round == 4


@pytest.mark.parametrize("name", ["fedavg", "ssfl"])
def test_a_run_in_whose_rounds_nobody_answers_ends_with_the_model_it_began_with(name: str) -> None:
    def silent(plan: RoundPlan) -> Collection[int]:
        return [i.client for i in plan.instructions] if plan.timed else ()

    rig = make_rig(method_of(name), float_data(SIZES), tiny_net("batch"), absent=silent)
    ended = rig.loop.run(rig.loop.start(rig.theta, 3))
    mask = rig.algorithm.global_mask(ended.state, rig.context)
    assert ended.state.theta.equal(rig.theta if mask is None else rig.theta * mask)
    assert [e["round"] for e in rig.events if e["event"] == "round"] == [1, 2, 3]
    assert rig.events[-1]["clients_trained"] == 0
    assert not any(e["event"] == "warning" and "answered" in e["message"] for e in rig.events)


# ── a phase ──────────────────────────────────────────────────────────────────────────────────────────────────────
PHASES = [("ssfl", "score", 1), ("ssfl", "store_mask", 1), ("fedavg_ft", "fine_tune", 4)]


@both_kinds
@pytest.mark.parametrize(("name", "phase", "round_"), PHASES)
def test_a_phase_without_a_reply_is_asked_for_three_times_and_then_stops_the_run(
    name: str, phase: str, round_: int, kind: str
) -> None:
    silence = SilentTimes(phase, round_, 10**9)
    rig = rig_with(name, kind, silence)
    with pytest.raises(NoReplyError, match=f"phase {phase}: no client answered, 3 times in a row"):
        rig.loop.run(rig.loop.start(rig.theta, 3))
    assert silence.asked.count(phase) == ATTEMPTS == 3
    assert silence.asked[-3:] == [phase] * 3
    assert rig.loop.progress is not None
    assert (
        rig.loop.progress.clock.round == round_
    )  # the state before the phase, from which the run can be resumed
    assert phase not in [e.get("phase") for e in rig.events]


@both_kinds
@pytest.mark.parametrize(("name", "phase", "round_"), PHASES)
def test_a_phase_that_is_answered_at_the_third_time_goes_on(
    name: str, phase: str, round_: int, kind: str
) -> None:
    """All three attempts are counted; the result equals that of a run with replies at the first attempt."""
    silence = SilentTimes(phase, round_, 2)
    rig, whole = (
        rig_with(name, kind, silence),
        make_rig(method_of(name), float_data(SIZES), tiny_net("batch")),
    )
    ended, wanted = (r.loop.run(r.loop.start(r.theta, 3)) for r in (rig, whole))
    assert silence.asked.count(phase) == 3
    assert same_value(ended.state, wanted.state)
    (event,), (theirs,) = ([e for e in r.events if e.get("phase") == phase] for r in (rig, whole))
    assert event["downlink_bytes"] == 3 * theirs["downlink_bytes"]
    assert event["uplink_bytes"] == theirs["uplink_bytes"]
    assert event["clients"] == theirs["clients"]
    assert "missing_replies" not in event
    messages = next(
        [payload_in(m) for i in plan.instructions for m in i.inbox]
        for plan, _ in rig.recorder.passed
        if plan.phase == phase
    )
    assert theirs["downlink_bytes"] == sum(len(encode(m)) for m in messages)


def test_a_silent_phase_can_be_resumed_from() -> None:
    """After NoReplyError the last finished exchange is kept; a resume from it gives the result of a complete run."""
    rig = rig_with("ssfl", "absent", SilentTimes("store_mask", 1, 3))
    with pytest.raises(NoReplyError):
        rig.loop.run(rig.loop.start(rig.theta, 3))
    assert rig.loop.progress is not None
    whole = make_rig(method_of("ssfl"), float_data(SIZES), tiny_net("batch"))
    ended = rig.loop.run(rig.loop.progress)
    assert same_value(ended.state, whole.loop.run(whole.loop.start(whole.theta, 3)).state)


def test_a_phase_is_attempted_with_other_draws_and_a_resume_repeats_them() -> None:
    """With half of the clients absent, three clients are all absent in one of eight attempts."""
    plan = RoundPlan("score", tuple(Instruction(c, ()) for c in range(3)), Clock(1, 2), timed=False)
    found: list[list[frozenset[int]]] = []
    for _ in range(2):
        absent = SeededAbsence(4, 0.5)
        found.append([frozenset(absent(plan)) for _ in range(40)])
    assert found[0] == found[1]
    assert len(set(found[0])) == 8, "every subset of the clients"
    absent = SeededAbsence(4, 0.5)
    first = absent(plan)
    absent(replace(plan, phase="store_mask"))
    assert absent(plan) == first, "another exchange came between: it is a first attempt"
