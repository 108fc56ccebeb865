"""SparsyFed: the authors' round through algorithm and engine, a round by hand, and invariants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Clock
from ssfl.algorithms.dense import WEIGHTS
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.sparsyfed import SparsyFed, SparsyFedState
from ssfl.core.optim import ExponentialDecay, FitSpec, GeometricDecay
from ssfl.core.payloads import DenseValues, SparseValues
from ssfl.core.power import PowerLayers
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.wire.message import encode
from tests.support.oracle_net import InOrder, OracleNet, arrays, flat, settings
from tests.support.rigs import FloatData, Rig, float_data, make_rig, make_runner, payload_in, tiny_net

WEIGHT_TOLERANCE = 1e-5
FIT = FitSpec(2, 8, GeometricDecay(0.5, 0.05, 4), weight_decay=1e-3)
VARIANTS: dict[str, Any] = {
    "own": lambda: SparsyFed(FIT, 3, 0.2),
    "no_pruning_of_activations": lambda: SparsyFed(FIT, 3, 0.2, prune_activations=False),
    "plain_layer": lambda: SparsyFed(FIT, 3, 0.2, PowerLayers(1.5, ("3",))),
    "top_k": lambda: SparsyFed(FIT, 3, 0.2, PowerLayers(1.0), prune_activations=False, reinitialise=False),
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
every_net = pytest.mark.parametrize("net", ["group", "batch"])


# ── the authors' round ──────────────────────────────────────────────────────────────────────────────────────────


def oracle_rig(density: float) -> Rig:
    x, y = arrays("sparsyfed")["data/x"], arrays("sparsyfed")["data/y"]
    clients = tuple((x[c][: c + 2].flatten(0, 1), y[c][: c + 2].flatten()) for c in range(3))
    fit = FitSpec(2, 8, ExponentialDecay(0.5, 1.0), weight_decay=1e-3)
    algorithm = SparsyFed(fit, 3, density, reinitialise=False)
    return make_rig(
        algorithm, FloatData(clients, clients, 10), OracleNet(), dtype=torch.float32, order=InOrder()
    )


def oracle_round(density: float) -> tuple[list[SparseValues], Tensor]:
    """The clients' uploads and the new global v, from the authors' global_in."""
    rig = oracle_rig(density)
    state = rig.algorithm.initialize(flat("sparsyfed", "gn/round1/global_in"), rig.context)
    plan = rig.plan(state, Clock(1, 500))
    replies = rig.exchanged(plan)
    parts = [r.payload.parts[WEIGHTS] for r in replies]
    after = rig.algorithm.aggregate(state, plan, replies, rig.context)
    return [p for p in parts if isinstance(p, SparseValues)], after.theta


def unpacked(part: SparseValues) -> Tensor:
    return torch.zeros(part.bits.shape, dtype=part.values.dtype).masked_scatter(part.bits, part.values)


def close(ours: Tensor, theirs: Tensor) -> None:
    atol = WEIGHT_TOLERANCE * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=WEIGHT_TOLERANCE, atol=atol)


def test_authors_local_training() -> None:
    parts, _ = oracle_round(1.0)
    for client, part in enumerate(parts):
        close(unpacked(part), flat("sparsyfed", f"gn/round1/client{client}/trained"))


def test_authors_pruning_and_average() -> None:
    parts, theta = oracle_round(0.1)
    file, pruned = arrays("sparsyfed"), settings("sparsyfed")["pruned_tensors"]
    layout = oracle_rig(0.1).context.layout
    for client, part in enumerate(parts):
        close(unpacked(part), flat("sparsyfed", f"gn/round1/client{client}/pruned"))
        views = layout.views(part.bits)
        for name in pruned:
            assert views[name].equal(file[f"gn/round1/client{client}/mask/{name}"].bool())
        facts = settings("sparsyfed")["gn"][f"round1/client{client}"]
        assert {n: int(views[n].count_nonzero()) for n in pruned} == facts["nonzero_per_tensor"]
        assert 1528 - int(layout.take_prunable(part.bits).count_nonzero()) == facts["pruned_count"]
    close(theta, flat("sparsyfed", "gn/round1/global_out"))
    share = float((layout.take_prunable(theta) == 0).double().mean())
    assert share == pytest.approx(settings("sparsyfed")["gn"]["round1/server"]["sparsity_of_prune_set"])


def test_first_learning_rate_is_one_step_down() -> None:
    schedule = GeometricDecay(0.5, 0.01, 500)
    assert schedule(1, 0) == pytest.approx(0.4961, abs=5e-5)
    assert schedule(500, 3) == pytest.approx(0.01)
    assert schedule(2, 0) / schedule(1, 0) == pytest.approx((0.01 / 0.5) ** (1 / 500))


# ── a round by hand ─────────────────────────────────────────────────────────────────────────────────────────────


def hand_client(v: Any, x: Any, label: int) -> Any:
    """One step (lr 0.5, decay 0.1) of a 2x4 power layer with activations pruned to its density; keep 3 of 8."""
    w = np.sign(v) * np.abs(v) ** 1.25
    scores = np.exp(w @ x - (w @ x).max())
    keep = int(np.ceil(np.count_nonzero(w) / w.size * x.size))
    kept = np.where(np.abs(x) >= np.sort(np.abs(x))[::-1][keep - 1], x, 0.0)
    gradient = np.outer(scores / scores.sum() - np.eye(2)[label], kept) * 1.25 * np.abs(v) ** 0.25
    v = v - 0.5 * (gradient + 0.1 * v)
    cut = np.sort(np.abs(v).ravel())[::-1][2]
    return np.where(np.abs(v) >= cut, v, 0.0)


def test_two_clients_by_hand() -> None:
    v = np.array([[0.5, -1.0, 0.0, 0.3], [0.0, 0.9, -0.4, 0.0]])
    inputs = [np.array([[1.0, 2.0, -1.0, 0.2]]), np.array([[0.5, -1.0, 3.0, -0.1]] * 2)]
    labels = [[0], [1, 1]]  # two equal examples: client 1 has weight 2, its step is that of one example
    sets = tuple((torch.tensor(x), torch.tensor(y)) for x, y in zip(inputs, labels, strict=True))
    fit = FitSpec(1, 2, ExponentialDecay(0.5, 1.0), weight_decay=0.1)
    algorithm = SparsyFed(fit, 2, 0.4, reinitialise=False)
    rig = make_rig(algorithm, FloatData(sets, sets, 2), nn.Linear(4, 2, bias=False))
    state = SparsyFedState(torch.tensor(v.ravel()))
    plan = rig.plan(state, Clock(1, 1))
    found = algorithm.aggregate(state, plan, rig.exchanged(plan), rig.context).theta.view(2, 4).numpy()
    each = [hand_client(v, x[0], y[0]) for x, y in zip(inputs, labels, strict=True)]
    np.testing.assert_allclose(found, (each[0] + 2 * each[1]) / 3, atol=1e-12)


# ── invariants ────────────────────────────────────────────────────────────────────────────────────────────────────


def new_rig(name: str, net: str, wire: bool = False, block: int = 0) -> Rig:
    algorithm, data, module = VARIANTS[name](), float_data(), tiny_net(net)
    runner = make_runner(data, module, algorithm.tasks)
    executor = BatchedExecutor(runner, block) if block else None
    return make_rig(algorithm, data, module, wire=wire, executor=executor)


@every_variant
@every_net
def test_uploads_keep_exactly_their_count_and_zeros_stay(name: str, net: str) -> None:
    rig = new_rig(name, net)
    rig.run(4)
    layout = rig.context.layout
    algorithm = rig.algorithm
    assert isinstance(algorithm, SparsyFed)
    power = layout.take_prunable(algorithm.layers.coordinates(layout))
    keep = round(0.2 * layout.prunable_size)
    for plan, replies in rig.recorder.passed:
        sent = payload_in(plan.instructions[0].inbox[0]).parts[WEIGHTS]
        union = torch.zeros(layout.prunable_size, dtype=torch.bool)
        for reply in replies:
            part = reply.payload.parts[WEIGHTS]
            assert isinstance(part, SparseValues)
            bits = layout.take_prunable(part.bits)
            assert int(bits.count_nonzero()) == keep
            assert int(part.bits.count_nonzero()) == keep + layout.size - layout.prunable_size
            union |= layout.take_prunable(unpacked(part) != 0)
        if plan.clock.round > 1 and algorithm.layers.beta > 1:
            assert isinstance(sent, SparseValues)
            known = layout.take_prunable(sent.bits)
            assert not bool((union & power & ~known).any())


@every_variant
@every_net
def test_wire_batched_and_sequential_agree(name: str, net: str) -> None:
    plain, wired, batched = new_rig(name, net), new_rig(name, net, wire=True), new_rig(name, net, block=3)
    weights = plain.run(3)
    assert wired.run(3).equal(weights)
    torch.testing.assert_close(batched.run(3), weights, rtol=0, atol=1e-10)
    assert plain.loop.progress is not None
    assert wired.loop.progress is not None
    assert wired.loop.progress.ledger == plain.loop.progress.ledger


@every_variant
def test_resume_is_never_stopped(name: str, tmp_path: Path) -> None:
    whole = new_rig(name, "batch").run(4)
    stopped = new_rig(name, "batch")
    progress = stopped.loop.start(stopped.theta, 4)
    for _ in range(2):
        progress = stopped.step(progress)
    Checkpoints(tmp_path).save(progress)
    resumed = new_rig(name, "batch")
    read = Checkpoints(tmp_path).latest(resumed.algorithm.records)
    assert read is not None
    resumed.recorder.restore(read[0].client_memories)
    state = resumed.loop.run(read[0]).state
    found = resumed.algorithm.weights_to_evaluate(state, resumed.context)
    assert found is not None
    assert found.equal(whole)


def test_pruning_activations_changes_training_once_weights_are_sparse() -> None:
    with_it, without = new_rig("own", "group"), new_rig("no_pruning_of_activations", "group")
    assert with_it.run(1).equal(without.run(1))  # a dense first model prunes nothing
    assert not new_rig("own", "group").run(2).equal(new_rig("no_pruning_of_activations", "group").run(2))


def test_beta_one_without_pruning_is_top_k_averaging() -> None:
    """Compared with FedAvg's client: the same training, then only the largest weights are kept."""
    rig = new_rig("top_k", "batch")
    plan = rig.plan(rig.algorithm.initialize(rig.theta, rig.context), Clock(1, 3))
    dense = make_rig(FedAvg(FIT, 3), float_data(), tiny_net("batch"))
    dense_plan = dense.plan(dense.algorithm.initialize(dense.theta, dense.context), Clock(1, 3))
    layout = rig.context.layout
    for ours, theirs in zip(rig.exchanged(plan), dense.exchanged(dense_plan), strict=True):
        sparse, whole = ours.payload.parts[WEIGHTS], theirs.payload.parts[WEIGHTS]
        assert isinstance(sparse, SparseValues)
        assert isinstance(whole, DenseValues)
        torch.testing.assert_close(sparse.values, whole.values[sparse.bits], rtol=0, atol=1e-12)
        kept, magnitude = layout.take_prunable(sparse.bits), layout.take_prunable(whole.values).abs()
        assert float(magnitude[kept].min()) >= float(magnitude[~kept].max())


def test_ledger_and_evaluation() -> None:
    rig = new_rig("own", "batch")
    weights = rig.run(3)
    layout = rig.context.layout
    keep = round(0.2 * layout.prunable_size) + layout.size - layout.prunable_size
    each = 20 + 16 + 1 + 4 + -(-layout.size // 8) + 8 * keep  # docs/wire-format.md; values are float64 here
    for (plan, replies), event in zip(rig.recorder.passed, rig.events, strict=True):
        assert event["uplink_bytes"] == 3 * each
        assert event["downlink_bytes"] == sum(
            len(encode(payload_in(p))) for i in plan.instructions for p in i.inbox
        )
        assert len(replies) == 3
    dense, sparse = rig.events[0]["downlink_bytes"], rig.events[1]["downlink_bytes"]
    assert dense == 3 * (41 + 8 * layout.size)
    assert sparse < dense
    assert rig.loop.progress is not None
    v = rig.loop.progress.state.theta
    power = PowerLayers().coordinates(layout)
    size = layout.trained_size
    expected = torch.where(power, v[:size].sign() * v[:size].abs() ** 1.25, v[:size])
    torch.testing.assert_close(weights, torch.cat([expected, v[size:]]))
    share = int((layout.take_prunable(v) != 0).count_nonzero()) / layout.prunable_size
    assert rig.events[-1]["density"] == pytest.approx(share)


def test_flops_count_the_received_support() -> None:
    rig = new_rig("own", "group")
    rig.run(2)
    sizes = [[r.examples for r in replies] for _, replies in rig.recorder.passed]
    per_example = [e["train_flops"] / sum(s) for e, s in zip(rig.events, sizes, strict=True)]
    assert per_example[1] < 0.5 * per_example[0]
