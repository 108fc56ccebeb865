"""Methods whose results are the clients' own: boards without order, masks that keep their size, sparse uploads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import DenseValues, Payload, SparseValues
from ssfl.engine.records import Packer
from tests.contract.table import ALGORITHMS, DENSITY, NETS, PERSONAL, ROUNDS, SIZES, kept_models
from tests.contract.test_masks_and_aggregates import Exchanged, exchanges

every_net = pytest.mark.parametrize("net", NETS)
DISPFL = tuple(name for name in PERSONAL if name.startswith("dispfl"))
SPARSYFED = tuple(name for name in ALGORITHMS if name.startswith("sparsyfed"))


def contents(state: object) -> tuple[object, list[Tensor]]:
    packer = Packer()
    return packer.pack(state), list(packer.tensors.values())


def same(one: object, two: object) -> bool:
    (told, tensors), (also, others) = contents(one), contents(two)
    return told == also and all(map(torch.equal, tensors, others))


def sparse(payload: Payload) -> SparseValues:
    part = payload.parts["w"]
    assert isinstance(part, SparseValues)
    return part


def per_tensor(layout: Layout, bits: Tensor) -> list[int]:
    return [int(t.count_nonzero()) for t in layout.views(bits[: layout.trained_size]).values()]


@pytest.mark.parametrize("name", PERSONAL)
@every_net
def test_the_board_is_free_of_order_and_takes_any_subset(name: str, net: str) -> None:
    for exchange in exchanges(name, net):
        method, context = exchange.rig.algorithm, exchange.rig.context
        turned = method.aggregate(exchange.before, exchange.plan, exchange.replies[::-1], context)
        assert same(turned, exchange.after)
        step_by_step = exchange.before
        for reply in exchange.replies[1:] + exchange.replies[:1]:
            before = step_by_step
            step_by_step = method.aggregate(before, exchange.plan, [reply], context)
            assert method.weights_to_evaluate(step_by_step, context) is None
            assert method.global_mask(step_by_step, context) is None
        assert same(step_by_step, exchange.after)


@pytest.mark.parametrize("name", PERSONAL)
@every_net
def test_clients_keep_models_of_their_own(name: str, net: str) -> None:
    last = exchanges(name, net)[-1]
    models = kept_models(last.rig)
    asked = {r.client for e in exchanges(name, net) for r in e.replies}
    assert len(asked) == len(SIZES) or name.endswith("_fair")
    assert bool(models.isfinite().all())
    for client, model in enumerate(models):
        assert model.equal(last.rig.theta) == (client not in asked)
    trained = models[sorted(asked)]
    assert len(torch.unique(trained, dim=0)) == len(trained)


@pytest.mark.parametrize("name", DISPFL)
@every_net
def test_personal_masks_keep_their_size_tensor_by_tensor(name: str, net: str) -> None:
    sizes: dict[int, list[int]] = {}
    moved = 0
    rounds = exchanges(name, net)
    layout = rounds[0].rig.context.layout
    masks = {c: sparse(p).bits for c, p in rounds[0].before.published.items()}
    for client, bits in masks.items():
        sizes[client] = per_tensor(layout, bits)
        kept = int(bits[: layout.trained_size].count_nonzero())
        assert kept == pytest.approx(DENSITY * layout.trained_size, abs=sum(layout.trained))
    for exchange in rounds:
        for reply in exchange.replies:
            part = sparse(reply.payload)
            assert per_tensor(layout, part.bits) == sizes[reply.client]
            moved += not part.bits.equal(masks[reply.client])
            masks[reply.client] = part.bits
    assert moved > 0
    states = rounds[-1].rig.recorder.client_states()
    for client, state in states.items():
        assert per_tensor(layout, state["mask"]) == sizes[client]
        assert state["values"].numel() == int(state["bits"].count_nonzero())


@pytest.mark.parametrize("name", DISPFL)
def test_a_personal_model_is_what_the_client_published(name: str) -> None:
    last = exchanges(name, "batch")[-1]
    for reply in last.replies:
        part = sparse(reply.payload)
        dense = torch.zeros(part.bits.shape, dtype=part.values.dtype)
        dense[part.bits] = part.values
        assert kept_models(last.rig)[reply.client].equal(dense)


@pytest.mark.parametrize("name", SPARSYFED)
@every_net
def test_an_upload_keeps_exactly_its_share(name: str, net: str) -> None:
    for exchange in exchanges(name, net):
        layout = exchange.rig.context.layout
        expected = round(DENSITY * layout.prunable_size)
        union = torch.zeros(layout.prunable_size, dtype=torch.bool)
        for reply in exchange.replies:
            bits = layout.take_prunable(sparse(reply.payload).bits)
            assert int(bits.count_nonzero()) == expected
            union |= bits
        mask = exchange.rig.algorithm.global_mask(exchange.after, exchange.rig.context)
        assert mask is not None
        assert bool((union | ~layout.take_prunable(mask)).all())
        assert (
            exchange.event["density"]
            == int(layout.take_prunable(mask).count_nonzero()) / layout.prunable_size
        )


@pytest.mark.parametrize("name", ["local", "local_fair"])
@every_net
def test_local_training_sends_each_client_one_model(name: str, net: str) -> None:
    sent: dict[int, int] = {}
    for exchange in exchanges(name, net):
        for instruction in exchange.plan.instructions:
            sent[instruction.client] = sent.get(instruction.client, 0) + len(instruction.inbox)
            for payload in instruction.inbox:
                part = payload.parts["w"]
                assert isinstance(part, DenseValues)
                assert part.values.equal(exchange.rig.theta)
        assert all(not r.payload.parts for r in exchange.replies)
    assert set(sent.values()) == {1}
    assert len(exchanges(name, net)) == ROUNDS


@pytest.mark.parametrize("name", ["dispfl", "dispfl_fair"])
def test_a_round_takes_what_the_neighbours_published_before_it(name: str) -> None:
    previous: Exchanged | None = None
    for exchange in exchanges(name, "group"):
        board = exchange.before.published if previous is None else previous.after.published
        for instruction in exchange.plan.instructions:
            for payload in instruction.inbox:
                if payload.sender >= 0:
                    assert payload is board[payload.sender]
                    assert payload.sender != instruction.client
        previous = exchange
