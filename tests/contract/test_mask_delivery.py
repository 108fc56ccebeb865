"""Who is sent the mask: every client once; with its values, in one message, those who are not known to hold it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.algorithms.base import RoundPlan
from ssfl.core.payloads import MaskBits, MaskedValues, Payload
from ssfl.engine.simulator import Absence
from tests.contract.exchanged import Exchanged, to_the_end
from tests.contract.table import ALGORITHMS, EXECUTORS, SIZES
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

EVERYBODY = frozenset(range(len(SIZES)))
ROUNDS = 4
METHODS = ("ssfl", "random_global")
every_method = pytest.mark.parametrize("name", METHODS)
both_kinds = pytest.mark.parametrize("kind", ["absent", "lost"])


def silent(at: Mapping[tuple[str, int], Collection[int]]) -> Absence:
    """(phase, round) -> who does not answer."""
    return lambda plan: at.get((plan.phase, plan.clock.round), ())


def rig_of(name: str, kind: str, absence: Absence, executor: str = "sequential") -> Rig:
    """Every client is in every cohort."""
    method = replace(ALGORITHMS[name](), per_round=len(SIZES))  # type: ignore[type-var]
    data, module = float_data(SIZES), tiny_net("batch")
    made = EXECUTORS[executor](make_runner(data, module, method.tasks))
    missing: dict[str, Absence] = {kind: absence}
    return make_rig(method, data, module, executor=made, **missing)  # type: ignore[arg-type]


def run_of(name: str, kind: str, absence: Absence, executor: str = "sequential") -> tuple[Exchanged, ...]:
    return to_the_end(rig_of(name, kind, absence, executor), ROUNDS)


def parts_sent(exchange: Exchanged) -> dict[int, list[tuple[str, ...]]]:
    return {client: [tuple(p.parts) for p in inbox] for client, inbox in exchange.delivered.items()}


VALUES, BOTH, MASK = [("w",)], [("mask", "w")], [("mask",)]


@every_method
@both_kinds
@pytest.mark.parametrize("executor", EXECUTORS)
def test_who_missed_the_mask_gets_it_with_its_first_values_and_only_then(
    name: str, kind: str, executor: str
) -> None:
    """Client 2 misses the mask and the first round too, client 4 the mask alone, client 1 the second round."""
    at = {("store_mask", 1): [2, 4], ("train", 1): [2], ("train", 2): [1]}
    run = run_of(name, kind, silent(at), executor)
    store, *training = [e for e in run if e.plan.phase != "score"]
    assert parts_sent(store) == dict.fromkeys(EVERYBODY, MASK)
    found = [parts_sent(e) for e in training]
    assert found[0] == dict.fromkeys(EVERYBODY, VALUES) | {2: BOTH, 4: BOTH}
    assert found[1] == dict.fromkeys(EVERYBODY, VALUES) | {2: BOTH}
    assert found[2] == found[3] == dict.fromkeys(EVERYBODY, VALUES)


@every_method
@both_kinds
def test_the_message_costs_the_mask_and_the_values_by_arithmetic(name: str, kind: str) -> None:
    """Header 20, checksum 4, a part 16 and its name; a mask one bit a prunable weight; values float64, digest 8."""
    store, first, *_ = [
        e for e in run_of(name, kind, silent({("store_mask", 1): [2]})) if e.plan.phase != "score"
    ]
    layout = first.rig.context.layout
    kept = int(layout.prunable_size * 0.3) + layout.size - layout.prunable_size
    mask, values = 16 + 4 + -(-layout.prunable_size // 8), 16 + 1 + 8 + 8 * kept
    assert store.event["downlink_bytes"] == 5 * (24 + mask)
    assert store.event["uplink_bytes"] == 4 * 24
    assert first.event["downlink_bytes"] == 5 * (24 + values) + mask
    assert first.event["uplink_bytes"] == 5 * (24 + values)


@every_method
@both_kinds
def test_who_missed_the_mask_trains_as_if_it_had_not(name: str, kind: str) -> None:
    run, whole = run_of(name, kind, silent({("store_mask", 1): [0, 2]})), run_of(name, kind, silent({}))
    ours, theirs = ([e for e in r if e.plan.timed] for r in (run, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one.after.theta.equal(other.after.theta)
    assert all(s["mask"].equal(run[-1].after.bits) for s in run[-1].rig.states().values())
    assert run[-1].after.holders == whole[-1].after.holders == tuple(sorted(EVERYBODY))


def mask_and_values(inbox: Sequence[Payload]) -> tuple[bool, bool]:
    (payload,) = inbox
    mask, values = payload.parts.get("mask"), payload.parts.get("w")
    assert mask is None or isinstance(mask, MaskBits)
    assert values is None or isinstance(values, MaskedValues)
    return mask is not None, values is not None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.frozensets(st.sampled_from(sorted(EVERYBODY))), min_size=ROUNDS + 1, max_size=ROUNDS + 1),
    st.sampled_from(["absent", "lost"]),
)
def test_a_model_of_who_holds_it_whoever_is_silent_when(silences: list[frozenset[int]], kind: str) -> None:
    """A set kept beside the run: clients whose answer to a message with the mask has arrived."""
    silences[0] = silences[0] if silences[0] < EVERYBODY else frozenset()  # somebody must store it
    at = {("store_mask", 1): silences[0]} | {("train", r): s for r, s in enumerate(silences[1:], 1)}
    holders: set[int] = set()
    for exchange in run_of("random_global", kind, silent(at)):
        answered = {reply.client for reply in exchange.replies}
        for client, inbox in exchange.delivered.items():
            wanted = (True, False) if exchange.plan.phase == "store_mask" else (client not in holders, True)
            assert mask_and_values(inbox) == wanted
        holders |= answered  # each was sent the mask now, or held it
        assert exchange.after.holders == tuple(sorted(holders))
        if not answered:
            assert exchange.after is exchange.before


def everybody_but(*clients: int) -> Absence:
    def absent(plan: RoundPlan) -> Collection[int]:
        return [i.client for i in plan.instructions if i.client not in clients]

    return absent


def test_one_client_is_enough() -> None:
    run = run_of("ssfl", "absent", everybody_but(3))
    assert [e.event["clients"] for e in run] == [1] * len(run)
    assert run[-1].after.holders == (3,)
    assert int(run[-1].after.bits.count_nonzero()) == int(run[-1].after.bits.numel() * 0.3)
