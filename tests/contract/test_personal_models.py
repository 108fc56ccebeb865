"""Methods whose results are the clients' own: boards without order, masks that keep their size, sparse uploads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssfl.core.payloads import SERVER, DenseValues, Payload
from ssfl.engine.state.serialization import Packer
from tests.contract.exchanged import exchanges
from tests.contract.reading import assert_support_of_uploads, per_tensor, sparse
from tests.contract.table import ALGORITHMS, DENSITY, NETS, PERSONAL, ROUNDS, SIZES, kept_models
from tests.support.rigs import payload_in

every_net = pytest.mark.parametrize("net", NETS)
DISPFL = tuple(name for name in PERSONAL if name.startswith("dispfl"))
SPARSYFED = tuple(name for name in ALGORITHMS if name.startswith("sparsyfed"))


def contents(state: object) -> tuple[object, list[Tensor]]:
    packer = Packer()
    return packer.pack(state), list(packer.tensors.values())


def same(one: object, two: object) -> bool:
    (head, tensors), (also, others) = contents(one), contents(two)
    return head == also and all(map(torch.equal, tensors, others))


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
    initial = rounds[0].plan.initial_model
    assert initial is not None
    masks = {c: sparse(initial(c)).bits for c in rounds[0].rig.context.clients}
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
    states = rounds[-1].rig.states()
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
        assert_support_of_uploads(exchange)


@pytest.mark.parametrize("name", ["local", "local_fair"])
@every_net
def test_local_training_sends_each_client_one_model(name: str, net: str) -> None:
    sent: dict[int, int] = {}
    for exchange in exchanges(name, net):
        for instruction in exchange.plan.instructions:
            sent[instruction.client] = sent.get(instruction.client, 0) + len(instruction.inbox)
            for payload in map(payload_in, instruction.inbox):
                part = payload.parts["w"]
                assert isinstance(part, DenseValues)
                assert part.values.equal(exchange.rig.theta)
        assert all(not r.payload.parts for r in exchange.replies)
    assert set(sent.values()) == {1}
    assert len(exchanges(name, net)) == ROUNDS


@pytest.mark.parametrize("name", ["dispfl", "dispfl_fair"])
def test_a_round_takes_what_the_neighbours_published_before_it(name: str) -> None:
    """What each sent last, and before that the initial model on its first mask."""
    sent: dict[int, Payload] = {}
    for exchange in exchanges(name, "group"):
        initial = exchange.plan.initial_model
        assert initial is not None
        for client, inbox in exchange.delivered.items():
            for payload in inbox:
                wanted = client if payload.sender == SERVER else payload.sender
                assert same(payload.parts, (sent[wanted] if wanted in sent else initial(wanted)).parts)
                assert payload.sender != client
                assert payload.sender != SERVER or client not in sent
            if client not in sent:
                assert same(inbox[0].parts, initial(client).parts)
        sent |= {r.client: r.payload for r in exchange.replies}


@pytest.mark.parametrize("name", DISPFL)
def test_before_it_has_sent_anything_a_client_is_the_initial_model_on_its_first_mask(name: str) -> None:
    first = exchanges(name, "batch")[0]
    theta, initial = first.rig.theta, first.plan.initial_model
    assert initial is not None
    for client in first.rig.context.clients:
        part = sparse(initial(client))
        assert part.values.equal(theta[part.bits])
        assert initial(client).sender == client
    masks = [tuple(sparse(initial(c)).bits.tolist()) for c in first.rig.context.clients]
    assert len(set(masks)) == (1 if name == "dispfl_full" else len(masks))
