"""What holds for every method with codecs between it and the wire: bits, bytes, executors, resume, missing replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import Payload, nbytes
from ssfl.engine.client.errors import DivergedError
from ssfl.engine.executors.processes.executor import ProcessExecutor
from ssfl.engine.simulator import Absence, SeededAbsence, all_answer
from ssfl.wire.coding import Coding, Votes
from ssfl.wire.half import Half
from ssfl.wire.holdings import State
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.message import decode, encode
from ssfl.wire.stack import Hop, WireStack
from ssfl.wire.uniform import Uniform
from tests.contract.reading import timeless
from tests.contract.table import ALGORITHMS, DENSITY, EXECUTORS, REFERENCE, ROUNDS, SIZES, models_of
from tests.support.resuming import kept_progress, resumed_from_each
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

Build = Callable[[Layout, int], WireStack]


def _stack(down: Coding, up: Coding, versions: int = 0) -> Build:
    return lambda layout, seed: WireStack(layout, seed, (down,), (up,), versions)


SMALL_DOWN, SMALL_UP = (
    Coding(Uniform(0.05), masks="coded"),
    Coding(Uniform(0.05), Uniform(0.5), Log(64, 4), "coded"),
)
STACKS: Mapping[str, Build] = {
    "lossless": _stack(Coding(Lossless(), masks="coded"), Coding(Lossless(), Lossless(), Half())),
    "balanced": _stack(
        Coding(Int8(256, "nearest"), masks="coded"),
        Coding(Int8(256, "nearest"), Int8(), Log(256, 8), "coded"),
    ),
    "small": _stack(SMALL_DOWN, SMALL_UP),
    "feedback": _stack(
        SMALL_DOWN, Coding(Int8(256, "nearest"), Uniform(2.0), Votes(0.3), "coded", feedback=True)
    ),
    "tracked": _stack(
        Coding(Uniform(0.05), Uniform(0.05, of="values"), masks="coded", smaller=True), SMALL_UP, versions=4
    ),
    "tracked_int8": _stack(
        Coding(Int8(256, "nearest"), Int8(256, "nearest", of="values"), masks="coded", smaller=True),
        Coding(Int8(256, "nearest"), Int8(), Log(256, 8), "coded"),
        versions=4,
    ),
}
METHODS = (
    "ssfl",
    "ssfl_warm_up",
    "ssfl_factored",
    "grasp",
    "fedavg",
    "fedavg_ft",
    "random_global",
    "random_clientwise",
    "dispfl",
    "sparsyfed",
    "local",
)
ROWS = [
    *[(method, "small") for method in METHODS],
    *[(method, stack) for method in ("ssfl", "fedavg") for stack in STACKS if stack != "small"],
    ("sparsyfed", "feedback"),
    ("dispfl", "lossless"),
    ("local", "tracked"),
]
every_row = pytest.mark.parametrize(("name", "stack"), ROWS)
PERSONAL = ("dispfl", "local")
ACROSS_PROCESSES = [
    ("ssfl", "small"),
    ("fedavg", "feedback"),
    ("fedavg", "tracked"),
    ("sparsyfed", "feedback"),
    ("dispfl", "lossless"),
]
"""Every kind of state that codecs keep, and messages between clients; workers take seconds to start."""


def new_rig(
    name: str,
    stack: str,
    executor: str = REFERENCE,
    wire: bool = False,
    seed: int = 7,
    absent: Absence = all_answer,
) -> Rig:
    """A run with codecs on a network with running statistics, in float32."""
    data, method, module = float_data(SIZES), ALGORITHMS[name](), tiny_net("batch")
    built = STACKS[stack](Layout.of(module), seed)
    runner = make_runner(data, module, method.tasks, seed, torch.float32, wire=built)
    chosen = ProcessExecutor(runner, 2) if executor == "processes" else EXECUTORS[executor](runner)
    return make_rig(
        method, data, module, seed, wire, torch.float32, executor=chosen, absent=absent, stack=built
    )


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    rig: Rig
    models: Tensor
    events: list[dict[str, Any]]


@cache
def ended(name: str, stack: str, executor: str = REFERENCE, wire: bool = False, seed: int = 7) -> Ended:
    rig = new_rig(name, stack, executor, wire, seed)
    try:
        return _ended(rig)
    finally:
        rig.executor.close()


def _ended(rig: Rig) -> Ended:
    progress = rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    return Ended(rig, models_of(rig, progress), timeless(rig.events))


@every_row
def test_real_bytes_change_nothing(name: str, stack: str) -> None:
    """`communication.measure=exact` makes and reads every message; closed_form passes parts by reference."""
    here, wired = ended(name, stack), ended(name, stack, wire=True)
    assert here.models.equal(wired.models)
    assert here.events == wired.events


@every_row
def test_what_is_counted_is_what_messages_take(name: str, stack: str) -> None:
    rig = ended(name, stack).rig
    payloads = rig.recorder.payloads()
    lengths = [len(encode(p, rig.context.layout)) for p in payloads]
    assert lengths == [nbytes(p) for p in payloads]
    assert rig.loop.progress is not None
    ledger = rig.loop.progress.ledger
    assert sum(lengths) == ledger.downlink_bytes + ledger.uplink_bytes + ledger.peer_bytes
    for payload in payloads:
        raw = encode(payload)
        assert encode(decode(raw)) == raw
    for event in ended(name, stack).events:
        if event["event"] in ("round", "phase"):
            assert (
                0 < event["downlink_metadata_bytes"] <= event["downlink_bytes"] or not event["downlink_bytes"]
            )
            assert 0 < event["uplink_metadata_bytes"] <= event["uplink_bytes"]
            if "peer_bytes" in event:
                assert 0 < event["peer_metadata_bytes"] < event["peer_bytes"]


@every_row
def test_threads_compute_the_same_bits(name: str, stack: str) -> None:
    one, other = ended(name, stack), ended(name, stack, "threads")
    assert one.models.equal(other.models)
    assert one.events == other.events


@pytest.mark.parametrize(("name", "stack"), ACROSS_PROCESSES)
def test_processes_compute_the_same_bits(name: str, stack: str) -> None:
    """Residuals, held values and coded messages cross to the workers and back."""
    one, other = ended(name, stack), ended(name, stack, "processes")
    assert one.models.equal(other.models)
    assert one.events == other.events
    ours, theirs = one.rig.states(), other.rig.states()
    assert ours.keys() == theirs.keys()
    for client, state in ours.items():
        assert state.keys() == theirs[client].keys()
        assert all(state[key].equal(theirs[client][key]) for key in state)


@every_row
def test_blocks_compute_the_same_but_for_roundings_that_fall_on_an_edge(name: str, stack: str) -> None:
    """Sums in another order move a value by 1e-7; a codec may then round it to the next symbol, a step away."""
    one, other = ended(name, stack), ended(name, stack, "batched")
    size = one.models.norm()
    assert float((one.models - other.models).norm() / size) < 0.05
    assert [e.get("phase") for e in one.events] == [e.get("phase") for e in other.events]


@every_row
def test_the_same_seed_gives_the_same_bits(name: str, stack: str) -> None:
    again = _ended(new_rig(name, stack))
    assert again.models.equal(ended(name, stack).models)
    assert again.events == ended(name, stack).events


@every_row
def test_resuming_anywhere_is_never_having_stopped(name: str, stack: str, tmp_path: Path) -> None:
    """Residuals, held values and versions come back with the clients' states and the server's."""
    first = new_rig(name, stack, wire=True)
    kept = kept_progress(first, tmp_path)
    whole = _ended(first)
    assert whole.models.equal(ended(name, stack).models)
    again = resumed_from_each(kept, lambda: new_rig(name, stack), whole.models, first.events)
    assert len(list(again)) == len(kept) > 0


@every_row
def test_missing_replies_end_no_run(name: str, stack: str) -> None:
    """30 % of the replies of every phase missing: whole values again for those of whom nothing is known."""
    rigs = [new_rig(name, stack, wire=w, absent=SeededAbsence(3, 0.3)) for w in (False, True)]
    one, wired = map(_ended, rigs)
    assert one.models.equal(wired.models)
    assert bool(one.models.isfinite().all())
    assert one.events == wired.events


EXACT = [(name, "lossless") for name in ("fedavg", "dispfl")]


@pytest.mark.parametrize(("name", "stack"), EXACT)
def test_lossless_codecs_change_no_bit_of_the_models(name: str, stack: str) -> None:
    plain = make_rig(ALGORITHMS[name](), float_data(SIZES), tiny_net("batch"), dtype=torch.float32)
    assert _ended(plain).models.equal(ended(name, stack).models)


@every_row
def test_codecs_move_models_little(name: str, stack: str) -> None:
    """Against the same run without codecs, in units of how far the run moved the initial model."""
    plain = make_rig(ALGORITHMS[name](), float_data(SIZES), tiny_net("batch"), dtype=torch.float32)
    exact, coded = _ended(plain).models, ended(name, stack).models
    moved = (exact - plain.theta).norm()
    assert float((exact - coded).norm() / moved) < (0.9 if stack == "feedback" else 0.6)


@pytest.mark.parametrize("stack", STACKS)
def test_densities_are_exact(stack: str) -> None:
    run = ended("ssfl", stack)
    layout = run.rig.context.layout
    assert run.rig.loop.progress is not None
    mask = run.rig.algorithm.global_mask(run.rig.loop.progress.state, run.rig.context)
    assert mask is not None
    assert int(layout.take_prunable(mask).sum()) == int(layout.prunable_size * DENSITY)
    assert int(run.models[~mask].count_nonzero()) == 0


@pytest.mark.parametrize(("name", "messages"), [("fedavg", ROUNDS), ("ssfl", ROUNDS + 2)])
def test_a_broadcast_is_encoded_once(name: str, messages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the encoder for each broadcast, and none for each client: five score, three train in a round."""
    calls: list[str] = []
    send = Coding.send

    def counted(self: Coding, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        calls.append(hop.direction)
        return send(self, payload, hop, state)

    monkeypatch.setattr(Coding, "send", counted)
    run = _ended(new_rig(name, "small"))
    plans = [plan for plan, _ in run.rig.recorder.passed]
    assert calls.count("down") == messages == len(plans)
    assert calls.count("up") == sum(len(plan.instructions) for plan in plans) > 2 * messages


@pytest.mark.parametrize("value", [1e6, float("inf")])
def test_a_model_that_the_downlink_cannot_code_ends_the_run_with_one_line(value: float) -> None:
    """float16 ends at 65,504."""
    module = tiny_net("batch")
    stack = WireStack(Layout.of(module), 7, (Coding(Half(torch.float16)),))
    rig = make_rig(ALGORITHMS["fedavg"](), float_data(SIZES), module, dtype=torch.float32, stack=stack)
    rig.theta[0] = value
    with pytest.raises(DivergedError) as caught:
        rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    assert "phase train, round 1: the server's message contains values" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_feedback_and_held_values_are_client_state() -> None:
    states = ended("ssfl", "feedback").rig.states()
    assert any("wire/up/coding/residual/w" in state for state in states.values())
    states = ended("ssfl", "tracked").rig.states()
    assert all("wire/held/values/w" in state for state in states.values())


@pytest.mark.parametrize(("stack", "with_versions"), [("small", "tracked"), ("balanced", "tracked_int8")])
def test_differences_take_fewer_bytes_than_whole_values(stack: str, with_versions: str) -> None:
    """From the second exchange on, for clients that took part before."""
    whole, tracked = ended("fedavg", stack), ended("fedavg", with_versions)
    first, *later = (
        (a["downlink_bytes"], b["downlink_bytes"]) for a, b in zip(whole.events, tracked.events, strict=True)
    )
    assert first[0] == first[1]
    assert sum(b for _, b in later) < sum(a for a, _ in later)


@pytest.mark.parametrize("name", PERSONAL)
def test_published_models_are_read_by_peers(name: str) -> None:
    run = ended(name, "small")
    assert bool(run.models.isfinite().all())
    assert not run.models[0].equal(run.models[1])
