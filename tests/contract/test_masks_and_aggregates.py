"""Masks stay exact, values stay inside them, and an aggregate is the mean over the replies, in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientTask, Clock, Work
from ssfl.core.payloads import SparseValues
from ssfl.engine.client.step import local_step_
from ssfl.engine.executors.distributed.means import PartialMean, outlines, payload_of, same
from tests.contract.exchanged import Exchanged, exchanges
from tests.contract.reading import (
    as_seen,
    assert_densities,
    assert_weighted_mean,
    dense_vector,
)
from tests.contract.table import (
    ALGORITHMS,
    DENSITY,
    GLOBAL,
    NETS,
    PER_ROUND,
    PERSONAL,
    ROUNDS,
    SHARED_MASK,
    SIZES,
)
from tests.support.rigs import Rig, float_data, make_runner, tiny_net

every_net = pytest.mark.parametrize("net", NETS)
every_masked = pytest.mark.parametrize("name", SHARED_MASK)


@every_net
@pytest.mark.parametrize("name", ALGORITHMS)
def test_who_says_averaged_reads_only_the_mean(name: str, net: str) -> None:
    """The aggregate of replies that all carry their weighted mean is the aggregate of the replies themselves."""
    seen = 0
    for exchange in exchanges(name, net):
        rig, task = exchange.rig, exchange.rig.algorithm.tasks[exchange.plan.phase]
        if not task.averaged_by:
            continue
        seen += 1
        mean = PartialMean()
        weights = [r.examples if task.averaged_by == "examples" else 1 for r in exchange.replies]
        for reply, weight in zip(exchange.replies, weights, strict=True):
            mean.add(reply.payload, weight / sum(weights))
        parts = same(outlines(r.payload) for r in exchange.replies)
        means = [mean.of(part) for part in parts]
        replies = [replace(r, payload=payload_of(parts, means, r.client)) for r in exchange.replies]
        found = rig.algorithm.aggregate(exchange.before, exchange.plan, replies, rig.context)
        for state in (found, exchange.after):
            assert rig.algorithm.weights_to_evaluate(state, rig.context) is not None
        torch.testing.assert_close(
            rig.algorithm.weights_to_evaluate(found, rig.context),
            rig.algorithm.weights_to_evaluate(exchange.after, rig.context),
            rtol=0,
            atol=1e-12,
        )
    assert seen or name in PERSONAL or name.startswith(("random_clientwise", "sparsyfed"))


@every_masked
@every_net
def test_density_is_exact_after_every_round(name: str, net: str) -> None:
    assert_densities(name, exchanges(name, net), ROUNDS)


@every_net
def test_the_shuffled_mask_keeps_ssfls_layer_sizes_at_other_places(net: str) -> None:
    masks = []
    for name in ("ssfl", "ssfl_shuffled"):
        last = exchanges(name, net)[-1]
        mask = last.rig.algorithm.global_mask(last.after, last.rig.context)
        assert mask is not None
        masks.append((last.rig.context.layout, mask))
    (layout, found), (_, shuffled) = masks
    assert layout.kept_per_layer(found) == layout.kept_per_layer(shuffled)
    assert not found.equal(shuffled)


@every_net
def test_a_floor_leaves_no_layer_empty(net: str) -> None:
    last = exchanges("ssfl_floor", net)[-1]
    mask = last.rig.algorithm.global_mask(last.after, last.rig.context)
    assert mask is not None
    layout = last.rig.context.layout
    kept = layout.kept_per_layer(mask)
    assert all(kept[n] >= max(1, int((b - a) * 0.2)) for n, a, b in layout.prunable_segments)


@every_net
def test_every_client_has_a_random_mask_of_its_own(net: str) -> None:
    masks: dict[int, Tensor] = {}
    for exchange in exchanges("random_clientwise", net):
        layout = exchange.rig.context.layout
        for reply in exchange.replies:
            part = reply.payload.parts["w"]
            assert isinstance(part, SparseValues)
            bits = layout.take_prunable(part.bits)
            for _, a, b in layout.prunable_segments:
                assert int(bits[a:b].count_nonzero()) == int((b - a) * DENSITY)
            assert bits.equal(masks.setdefault(reply.client, bits)), "a client's mask changed"
    distinct = {tuple(bits.tolist()) for bits in masks.values()}
    assert len(distinct) == len(masks) > 1


def clipped_gradients(task: ClientTask, work: Work, gradient: Tensor) -> list[Tensor]:
    """What clipping sees of a gradient [T], at a copy of the work's weights."""
    seen: list[Tensor] = []

    def update(theta: Tensor, gradient: Tensor, velocity: Tensor | None) -> None:
        seen.append(gradient.clone())

    local_step_(task, work["theta"][: len(gradient)].clone(), gradient.clone(), None, work, update)
    return seen


@every_masked
@every_net
def test_no_gradient_and_no_weight_leaves_the_mask(name: str, net: str) -> None:
    exchange = exchanges(name, net)[-1]
    rig = exchange.rig
    mask = rig.algorithm.global_mask(exchange.before, rig.context)
    assert mask is not None
    task = rig.algorithm.tasks["train"]
    layout = rig.context.layout
    gradient = torch.randn(layout.trained_size, dtype=torch.float64)
    runner = make_runner(float_data(SIZES), tiny_net(net), rig.algorithm.tasks)
    for instruction in exchange.plan.instructions:
        context = ClientContext(
            instruction.client, Clock(ROUNDS, ROUNDS), 7, layout, SIZES[instruction.client]
        )
        inbox = exchange.delivered[instruction.client]
        work, _ = task.receive(inbox, rig.states()[instruction.client], context)
        assert int(work["theta"][~mask].count_nonzero()) == 0
        (seen,) = clipped_gradients(task, work, gradient)
        assert seen.equal(torch.where(mask[: layout.trained_size], gradient, 0.0))
        assert task.fit is not None
        before = work["theta"].clone()
        runner.fit(task, task.fit, work, context)
        assert int(work["theta"][~mask].count_nonzero()) == 0
        assert not work["theta"].equal(before)


@pytest.mark.parametrize("name", GLOBAL)
@every_net
def test_an_aggregate_is_free_of_order_and_takes_any_subset(name: str, net: str) -> None:
    for exchange in exchanges(name, net):
        rig, method = exchange.rig, exchange.rig.algorithm
        for order in (exchange.replies[::-1], exchange.replies[1:] + exchange.replies[:1]):
            turned = method.aggregate(exchange.before, exchange.plan, order, rig.context)
            assert_same(method.weights_to_evaluate(turned, rig.context), exchange, rig)
        for reply in exchange.replies:
            alone = method.aggregate(exchange.before, exchange.plan, [reply], rig.context)
            mask = method.global_mask(exchange.before, rig.context)
            model = dense_vector(reply, mask)
            weights = method.weights_to_evaluate(alone, rig.context)
            assert weights is not None
            assert bool(weights.isfinite().all())
            if model is not None:
                torch.testing.assert_close(weights, as_seen(name, model, rig), rtol=1e-14, atol=0)


def assert_same(turned: Tensor | None, exchange: Exchanged, rig: Rig) -> None:
    straight = rig.algorithm.weights_to_evaluate(exchange.after, rig.context)
    assert turned is not None
    assert straight is not None
    torch.testing.assert_close(turned, straight, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", GLOBAL)
@every_net
def test_a_round_is_the_weighted_mean_of_its_cohort(name: str, net: str) -> None:
    for exchange in exchanges(name, net):
        if exchange.plan.timed:
            assert len(exchange.replies) == PER_ROUND
            assert_weighted_mean(name, exchange)


@every_net
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "random_clientwise"])
def test_bytes_by_arithmetic(name: str, net: str) -> None:
    """Header 20, part header 16, one letter of name, checksum 4; float64 values; docs/wire-format.md."""
    for exchange in exchanges(name, net):
        if not exchange.plan.timed:
            continue
        layout, event = exchange.rig.context.layout, exchange.event
        fixed, size = 20 + 16 + 1 + 4, layout.size
        rest = size - layout.prunable_size
        down = up = 8 * size
        if name == "ssfl":
            down = up = 8 + 8 * (int(layout.prunable_size * DENSITY) + rest)
        if name == "random_clientwise":
            kept = sum(int((b - a) * DENSITY) for _, a, b in layout.prunable_segments)
            up = -(-size // 8) + 8 * (kept + rest)
        assert event["downlink_bytes"] == PER_ROUND * (fixed + down)
        assert event["uplink_bytes"] == PER_ROUND * (fixed + up)
