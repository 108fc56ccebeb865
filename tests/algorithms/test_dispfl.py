"""DisPFL: the authors' numbers through algorithm and engine, and a round by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientContext, Clock, ServerContext
from ssfl.algorithms.dense import WEIGHTS
from ssfl.algorithms.dispfl import DisPFL, DisPFLState, MaskSearch
from ssfl.core.evolve import drop_counts, drop_smallest, grow_largest, trained_spans
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SERVER, Payload, SparseValues, pack_sparse
from ssfl.core.topology import Topology
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.memory import ClientMemory
from tests.support.oracle_net import InOrder, OracleNet, arrays, flat
from tests.support.rigs import FloatData, Rig, float_data, make_rig, make_runner, resolved, tiny_net

WEIGHT_TOLERANCE = 1e-5
FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, weight_decay=5e-4, clip_norm=1.0)


# ── the authors' numbers ────────────────────────────────────────────────────────────────────────────────────────


def oracle_data() -> FloatData:
    x, y = arrays("dispfl")["data/x"], arrays("dispfl")["data/y"]
    clients = tuple((x[c].flatten(0, 1), y[c].flatten()) for c in range(3))
    return FloatData(clients, clients, 10)


def oracle_rig(topology: Topology = "full") -> Rig:
    # The authors' round 0 trains at lr 0.1 for any decay; a strong decay would reveal an exponent that is off by one.
    fit = FitSpec(2, 8, ExponentialDecay(0.1, 0.5, first_exponent=0), weight_decay=5e-4, clip_norm=10.0)
    algorithm = DisPFL(fit, 0.5, topology=topology)
    return make_rig(algorithm, oracle_data(), OracleNet(), dtype=torch.float32, order=InOrder())


def received(rig: Rig, inbox: tuple[Payload, ...], state: dict[str, Tensor], client: int) -> Tensor:
    context = ClientContext(client, Clock(1, 500), 7, rig.context.layout, 24)
    work, _ = rig.algorithm.tasks["train"].receive(inbox, state, context)
    return work["theta"]


def published(client: int) -> SparseValues:
    weights = flat("dispfl", f"agg/weights/{client}")
    mask = flat("dispfl", f"agg/shared_mask/{client}").bool()
    assert not weights[~mask].any()
    return pack_sparse(weights, mask)


@pytest.mark.parametrize(
    ("client", "heard", "expected"),
    [(c, tuple(range(3)), f"agg/out_local/{c}") for c in range(3)] + [(0, (0, 2), "agg/out_local_neigh02/0")],
)
def test_authors_aggregation(client: int, heard: tuple[int, ...], expected: str) -> None:
    rig = oracle_rig()
    part = published(client)
    state = {
        "values": part.values,
        "bits": part.bits,
        "mask": flat("dispfl", f"agg/own_mask/{client}").bool(),
    }
    board = DisPFLState(rig.theta, {}, joined=heard)
    context = ServerContext(rig.context.layout, dict.fromkeys(heard, 24), 7)
    plan = rig.algorithm.configure_round(board, Clock(2, 500), context)
    assert plan is not None
    sent = {c: ClientMemory(published=Payload({WEIGHTS: published(c)}, c)) for c in heard}
    inbox = {i.client: i.inbox for i in plan.instructions}[client]
    assert [p.sender for p in inbox] == [c for c in heard if c != client]
    found = received(rig, tuple(resolved(m, plan, sent) for m in inbox), state, client)
    torch.testing.assert_close(found, flat("dispfl", expected), rtol=0, atol=WEIGHT_TOLERANCE)


def test_authors_local_training_and_mask_search() -> None:
    rig = oracle_rig()
    mask = flat("dispfl", "mask0/0").bool()
    first = Payload({WEIGHTS: pack_sparse(flat("dispfl", "w0"), mask)}, SERVER)
    job = ClientJob("train", 0, (first,), Clock(1, 500))
    runner = make_runner(
        oracle_data(), OracleNet(), rig.algorithm.tasks, dtype=torch.float32, order=InOrder()
    )
    outcome = runner.run(job)
    part = outcome.reply.payload.parts[WEIGHTS]
    assert isinstance(part, SparseValues)
    assert part.bits.equal(mask)
    trained = torch.zeros(mask.shape).masked_scatter(part.bits, part.values)
    torch.testing.assert_close(trained, flat("dispfl", "local/out_round0"), rtol=0, atol=WEIGHT_TOLERANCE)
    # The gradient for regrowth is a stored vector in the authors' numbers, not a gradient of this network.
    given, search, context = flat("dispfl", "regrow/gradient_round0"), MaskSearch(), runner.context(job)
    dropped = drop_smallest(
        mask, trained, drop_counts(mask, 0.5, spans := trained_spans(runner.layout)), spans
    )
    assert dropped.equal(flat("dispfl", "fire/mask_round0").bool())
    found = search.next_mask(mask, {"theta": trained}, given, context)
    assert found.equal(flat("dispfl", "regrow/mask_round0").bool())
    assert outcome.state is not None
    assert outcome.state["bits"].equal(mask)


def test_regrowth_looks_at_the_first_batch_after_training_in_eval_mode() -> None:
    rig = make_rig(DisPFL(FIT, 0.4, neighbour_count=2), float_data(), tiny_net("batch"), order=InOrder())
    plan = rig.plan(rig.algorithm.initialize(rig.theta, rig.context), Clock(1, 4))
    for reply in rig.exchanged(plan):
        state, size = rig.states()[reply.client], rig.context.layout.trained_size
        trained = torch.zeros(state["bits"].shape, dtype=torch.float64)
        trained.masked_scatter_(state["bits"], state["values"])
        x, y = (t[:8] for t in float_data().train[reply.client])
        module = tiny_net("batch").double().eval()
        with torch.no_grad():
            for name, tensor in rig.context.layout.views(trained).items():
                module.state_dict()[name].copy_(tensor)
        gradients = torch.autograd.grad(cross_entropy(module(x.double()), y), list(module.parameters()))
        flat_gradient = torch.cat([g.flatten() for g in gradients])
        spans = trained_spans(rig.context.layout)
        counts = drop_counts(state["bits"][:size], 0.5, spans)
        left = drop_smallest(state["bits"][:size], trained[:size], counts, spans)
        assert state["mask"][:size].equal(grow_largest(left, flat_gradient, counts, spans))


# ── a round by hand ─────────────────────────────────────────────────────────────────────────────────────────────


def hand_round(weights: list[Any], masks: list[Any], x: Any, label: int, client: int) -> tuple[Any, Any]:
    """Gossip, one SGD step (lr 0.5, no clip) and the gradient search of a 2x3 linear classifier, in numpy."""
    total, holders = sum(weights), sum(m.astype(float) for m in masks)
    w = np.divide(total, holders, out=np.zeros_like(total), where=holders > 0) * masks[client]

    def gradient_at(v: Any) -> Any:
        scores = np.exp(v @ x - (v @ x).max())
        return np.outer(scores / scores.sum() - np.eye(2)[label], x)

    w = (w - 0.5 * gradient_at(w)) * masks[client]
    kept = np.argwhere(masks[client])
    count = int(np.ceil(np.float32(0.5) * np.float32(len(kept))))  # round 1 of 4: the full rate
    next_mask = masks[client].copy()
    for i, j in sorted(kept.tolist(), key=lambda at: abs(w[at[0], at[1]]))[:count]:
        next_mask[i, j] = False
    g = gradient_at(w)
    for i, j in sorted(np.argwhere(~next_mask).tolist(), key=lambda at: -abs(g[at[0], at[1]]))[:count]:
        next_mask[i, j] = True
    return w, next_mask


def test_two_clients_by_hand() -> None:
    masks = [np.array([[1, 1, 0], [0, 1, 0]], bool), np.array([[1, 0, 0], [0, 1, 1]], bool)]
    weights = [np.array([[0.5, -1.0, 0], [0, 2.0, 0]]), np.array([[1.5, 0, 0], [0, -1.0, 0.7]])]
    inputs, labels = [np.array([1.0, 2.0, -1.0]), np.array([0.5, -1.0, 3.0])], [0, 1]
    sets = tuple(
        (torch.tensor(x)[None], torch.tensor([label])) for x, label in zip(inputs, labels, strict=True)
    )
    algorithm = DisPFL(FitSpec(1, 1, ExponentialDecay(0.5, 1.0)), 0.5, topology="full")
    rig = make_rig(algorithm, FloatData(sets, sets, 2), nn.Linear(3, 2, bias=False))
    parts = [pack_sparse(torch.tensor(w.ravel()), torch.tensor(m.ravel())) for w, m in zip(weights, masks)]
    sent = {c: Payload({WEIGHTS: p}, c) for c, p in enumerate(parts)}
    plan = rig.plan(DisPFLState(torch.zeros(6), {}), Clock(1, 4))
    rig.exchanged(replace(plan, initial_model=sent.__getitem__))
    for client, state in rig.states().items():
        w, next_mask = hand_round(weights, masks, inputs[client], labels[client], client)
        trained = torch.zeros(6, dtype=torch.float64).masked_scatter(state["bits"], state["values"])
        np.testing.assert_allclose(trained.view(2, 3).numpy(), w, atol=1e-12)
        np.testing.assert_array_equal(state["mask"].view(2, 3).numpy(), next_mask)
