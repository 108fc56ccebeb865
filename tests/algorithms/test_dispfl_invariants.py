"""DisPFL invariants: densities, bytes, resume, equal executors and runtimes, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, Clock, RoundPlan
from ssfl.algorithms.dense import WEIGHTS
from ssfl.algorithms.dispfl import DisPFL, MaskSearch, gossip_training
from ssfl.core.erk import erk_densities, trained_shapes
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SERVER, Payload, SparseValues, pack_sparse
from ssfl.core.rng import stream
from ssfl.engine.client.step import local_step_
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.wire.message import encode
from tests.support.oracle_net import NAMES, OracleNet
from tests.support.rigs import Rig, float_data, make_rig, make_runner, resolved, tiny_net

WEIGHT_TOLERANCE = 1e-5
FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, weight_decay=5e-4, clip_norm=1.0)
VARIANTS: dict[str, Any] = {
    "gradient": lambda: DisPFL(FIT, 0.4, neighbour_count=2),
    "random": lambda: DisPFL(FIT, 0.4, MaskSearch(grow="random"), "ring", different_initial=False),
    "fair": lambda: DisPFL(FIT, 0.4, topology="full", per_round=2),
    "fixed": lambda: DisPFL(FIT, 0.4, MaskSearch(grow="none"), neighbour_count=1),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
every_net = pytest.mark.parametrize("net", ["group", "batch"])


def received(rig: Rig, inbox: tuple[Payload, ...], state: dict[str, Tensor], client: int) -> Tensor:
    context = ClientContext(client, Clock(1, 500), 7, rig.context.layout, 24)
    work, _ = rig.algorithm.tasks["train"].receive(inbox, state, context)
    return work["theta"]


def first_plan(rig: Rig) -> RoundPlan:
    return rig.plan(rig.algorithm.initialize(rig.theta, rig.context), Clock(1, 3))


def first_masks(rig: Rig) -> dict[int, Tensor]:
    """The mask of every client's initial model, by resolving references to it."""
    initial = first_plan(rig).initial_model
    assert initial is not None
    return {c: sparse(initial(c)).bits for c in rig.context.clients}


def sparse(payload: Payload) -> SparseValues:
    part = payload.parts[WEIGHTS]
    assert isinstance(part, SparseValues)
    return part


def new_rig(name: str, net: str, wire: bool = False, block: int = 0) -> Rig:
    algorithm, data, module = VARIANTS[name](), float_data(), tiny_net(net)
    runner = make_runner(data, module, algorithm.tasks)
    executor = BatchedExecutor(runner, block) if block else None
    return make_rig(algorithm, data, module, wire=wire, executor=executor)


def finish(rig: Rig, rounds: int = 3) -> dict[int, dict[str, Tensor]]:
    rig.loop.run(rig.loop.start(rig.theta, rounds))
    return {c: dict(s) for c, s in rig.states().items()}


def assert_equal_states(ours: dict[int, dict[str, Tensor]], theirs: dict[int, dict[str, Tensor]]) -> None:
    assert ours.keys() == theirs.keys()
    for client, state in theirs.items():
        for name, tensor in state.items():
            assert ours[client][name].equal(tensor), (client, name)


def tensor_counts(layout: Layout, mask: Tensor) -> list[int]:
    views = layout.views(mask[: layout.trained_size]).values()
    return [int(view.count_nonzero()) for view in views]


@every_variant
@every_net
def test_density_of_every_mask_after_every_round(name: str, net: str) -> None:
    rig = new_rig(name, net)
    layout = rig.context.layout
    shapes = trained_shapes(layout)
    shares = erk_densities(shapes, 0.4)
    expected = [int(shares[n] * torch.Size(s).numel()) for n, s in shapes.items()]
    progress = rig.loop.start(rig.theta, 3)
    for _ in range(3):
        progress = rig.step(progress)
        for state in rig.states().values():
            for key in ("bits", "mask"):
                assert tensor_counts(layout, state[key]) == expected
                assert bool(state[key][layout.trained_size :].all())
    sent = [memory.load().published for memory in rig.recorder.client_memories().values()]
    assert len(sent) >= 2
    for payload in sent:
        assert payload is not None
        assert tensor_counts(layout, sparse(payload).bits) == expected
    if name != "fair":
        assert progress.state.masks == {}  # all clients have published, so first masks are no longer stored
    for mask in first_masks(rig).values():
        assert tensor_counts(layout, mask) == expected


def test_masks_move_and_differ() -> None:
    rig = new_rig("gradient", "group")
    masks = first_masks(rig)
    assert not masks[0].equal(masks[1])
    common = first_masks(new_rig("random", "group"))
    assert common[0].equal(common[3])
    states = finish(rig)
    assert not states[0]["mask"].equal(masks[0])
    assert finish(new_rig("fixed", "group"))[0]["mask"].equal(masks[0])


@every_variant
def test_first_gossip_gives_everybody_the_initial_model_inside_its_mask(name: str) -> None:
    rig = new_rig(name, "group")
    plan, masks = first_plan(rig), first_masks(rig)
    for instruction in plan.instructions:
        mask = masks[instruction.client]
        inbox = tuple(resolved(m, plan, {}) for m in instruction.inbox)
        found = received(rig, inbox, {}, instruction.client)
        torch.testing.assert_close(found, rig.theta * mask, rtol=0, atol=1e-15)


def test_next_round_shares_weights_under_the_mask_they_were_trained_under() -> None:
    rig = new_rig("gradient", "group")
    states = finish(rig, 1)
    assert rig.loop.progress is not None
    plan = rig.plan(rig.loop.progress.state, Clock(2, 3))
    for instruction in plan.instructions:
        for message in instruction.inbox:
            payload = resolved(message, plan, rig.recorder.client_memories())
            part = sparse(payload)
            assert part.bits.equal(states[payload.sender]["bits"])
            assert not part.bits.equal(states[payload.sender]["mask"])


def test_clip_sees_the_dense_gradient() -> None:
    """The norm over all four coordinates is 2, clipped to 1: each becomes 1/2, although the mask keeps only two."""
    task = gossip_training(MaskSearch(), FIT)
    theta, gradient = torch.ones(4), torch.ones(4)
    work = {"mask": torch.tensor([True, False, False, True])}
    seen: list[list[float]] = []

    def update(theta: Tensor, gradient: Tensor, velocity: Tensor | None) -> None:
        seen.append(gradient.tolist())
        theta.sub_(gradient / gradient.norm())

    local_step_(task, theta, gradient, None, work, update)
    assert seen == [[1.0] * 4]
    assert theta.tolist() == [0.5, 0.0, 0.0, 0.5]


@every_variant
@every_net
def test_wire_batched_and_sequential_agree(name: str, net: str) -> None:
    plain, wired, batched = new_rig(name, net), new_rig(name, net, wire=True), new_rig(name, net, block=3)
    states = finish(plain)
    assert_equal_states(finish(wired), states)
    assert plain.loop.progress is not None
    assert wired.loop.progress is not None
    assert wired.loop.progress.ledger == plain.loop.progress.ledger
    for client, state in finish(batched).items():
        assert state["mask"].equal(states[client]["mask"])
        torch.testing.assert_close(state["values"], states[client]["values"], rtol=0, atol=1e-10)


@every_variant
def test_resume_is_never_stopped(name: str, tmp_path: Path) -> None:
    whole = finish(new_rig(name, "batch"), 4)
    stopped = new_rig(name, "batch")
    progress = stopped.loop.start(stopped.theta, 4)
    for _ in range(2):
        progress = stopped.step(progress)
    Checkpoints(tmp_path).save(progress)
    resumed = new_rig(name, "batch")
    read = Checkpoints(tmp_path).latest(resumed.algorithm.records)
    assert read is not None
    resumed.recorder.restore(read[0].client_memories)
    resumed.loop.run(read[0])
    found = {c: dict(s) for c, s in resumed.states().items()}
    assert_equal_states(found, whole)


@every_variant
def test_ledger_charges_each_edge(name: str) -> None:
    rig = new_rig(name, "group")
    finish(rig)
    recorder = rig.recorder
    for inboxes, (_, replies), event in zip(recorder.delivered, recorder.passed, rig.events, strict=True):
        sent = [(p.sender, len(encode(p))) for inbox in inboxes.values() for p in inbox]
        assert event["peer_bytes"] == sum(n for sender, n in sent if sender != SERVER)
        assert event["downlink_bytes"] == sum(n for sender, n in sent if sender == SERVER)
        assert event["uplink_bytes"] == sum(len(encode(r.payload)) for r in replies)
        assert event.get("global_accuracy") is None
        assert {"received", "trained"} == set(replies[0].report.tallies)
    firsts = {i.client for plan, _ in rig.recorder.passed for i in plan.instructions}
    from_server = [
        i.client
        for plan, _ in rig.recorder.passed
        for i in plan.instructions
        for p in i.inbox
        if p.sender == SERVER
    ]
    assert sorted(from_server) == sorted(firsts)  # once each


def test_cohort_of_the_fair_variant() -> None:
    rig = new_rig("fair", "group")
    finish(rig)
    assert [len(replies) for _, replies in rig.recorder.passed] == [2, 2, 2]
    everybody = new_rig("gradient", "group")
    finish(everybody)
    assert [len(replies) for _, replies in everybody.recorder.passed] == [5, 5, 5]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="random, ring, full"):
        DisPFL(FIT, 0.5, topology="star")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient, random, none"):
        DisPFL(FIT, 0.5, MaskSearch(grow="best"))  # type: ignore[arg-type]
    rig = new_rig("gradient", "group")
    with pytest.raises(ValueError, match="client 2 has no model: send its initial model first"):
        received(rig, (), {}, 2)
    short = pack_sparse(torch.ones(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="from 4: expected a model of"):
        received(rig, (Payload({WEIGHTS: short}, 4),), {}, 2)


def test_names_of_the_oracle_net() -> None:
    assert tuple(trained_shapes(Layout.of(OracleNet()))) == NAMES
    assert stream(7, "mask", 0).initial_seed() != stream(7, "mask", 1).initial_seed()
