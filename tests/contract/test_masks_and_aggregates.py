"""Masks stay exact, nothing leaves them, and an aggregate is a mean over whoever replied, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientReply, Clock, RoundPlan
from ssfl.core.payloads import DenseValues, MaskedValues, SparseValues
from ssfl.engine.rank_means import PartialMean, outlines, payload_of, same
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
    new_rig,
)
from tests.engine.support import Event, Rig, float_data, make_runner, tiny_net

every_net = pytest.mark.parametrize("net", NETS)
every_masked = pytest.mark.parametrize("name", SHARED_MASK)


@dataclass(frozen=True)
class Exchanged:
    """One exchange of a run: what was known before it, what was asked and answered, what came of it."""

    rig: Rig
    before: Any
    plan: RoundPlan
    replies: list[ClientReply]
    after: Any
    event: Event


@cache
def exchanges(name: str, net: str) -> tuple[Exchanged, ...]:
    return tuple(_exchanges(new_rig(name, net)))


def _exchanges(rig: Rig) -> Iterator[Exchanged]:
    progress = rig.loop.start(rig.theta, ROUNDS)
    while (plan := rig.algorithm.configure_round(progress.state, progress.clock, rig.context)) is not None:
        before = progress.state
        progress = rig.loop.step(progress, plan)
        yield Exchanged(rig, before, plan, rig.recorder.passed[-1][1], progress.state, rig.events[-1])


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


def dense_vector(reply: ClientReply, mask: Tensor | None) -> Tensor | None:
    """A reply's model [P], unpacked here by plain indexing; None when it carries no model."""
    part = reply.payload.parts.get("w")
    if isinstance(part, DenseValues):
        return part.values
    if isinstance(part, SparseValues):
        mask = part.bits
    if not isinstance(part, (MaskedValues, SparseValues)):
        return None
    assert mask is not None
    out = torch.zeros(mask.shape, dtype=part.values.dtype)
    out[mask] = part.values
    return out


def as_seen(name: str, model: Tensor, rig: Rig) -> Tensor:
    """What the network sees of a model [P]: SparsyFed's is sign(v) |v|^1.25 in every weight matrix and filter."""
    if not name.startswith("sparsyfed"):
        return model
    prunable = rig.context.layout.prunable_bits()
    return torch.where(prunable, model.sign() * model.abs().pow(1.25), model)


def expected_count(name: str, sizes: list[int]) -> int:
    if name == "random_layerwise":
        return sum(int(n * DENSITY) for n in sizes)
    return int(sum(sizes) * DENSITY)


@every_masked
@every_net
def test_density_is_exact_after_every_round(name: str, net: str) -> None:
    seen = 0
    for exchange in exchanges(name, net):
        rig, layout = exchange.rig, exchange.rig.context.layout
        mask = rig.algorithm.global_mask(exchange.after, rig.context)
        if mask is None:
            assert exchange.plan.phase == "warmup"
            continue
        sizes = [b - a for _, a, b in layout.prunable_segments]
        assert int(layout.take_prunable(mask).count_nonzero()) == expected_count(name, sizes)
        assert bool(mask[~layout.prunable_bits()].all())
        theta = rig.algorithm.weights_to_evaluate(exchange.after, rig.context)
        assert theta is not None
        assert int(theta[~mask].count_nonzero()) == 0
        assert exchange.event["density"] == expected_count(name, sizes) / sum(sizes)
        seen += exchange.plan.timed
    assert seen == ROUNDS - (name == "ssfl_warm_up")


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
        state = rig.recorder.client_states()[instruction.client]
        work = task.receive(instruction.inbox, state, context)
        assert int(work["theta"][~mask].count_nonzero()) == 0
        seen = task.transform_gradient(gradient.clone(), work["theta"][: layout.trained_size], work)
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
        if not exchange.plan.timed:
            continue
        rig = exchange.rig
        mask = rig.algorithm.global_mask(exchange.before, rig.context)
        models = [dense_vector(r, mask) for r in exchange.replies]
        counts = [SIZES[r.client] for r in exchange.replies]
        assert len(counts) == PER_ROUND
        mean = np.average(np.stack([m.numpy() for m in models if m is not None]), axis=0, weights=counts)
        ours = rig.algorithm.weights_to_evaluate(exchange.after, rig.context)
        assert ours is not None
        expected = as_seen(name, torch.from_numpy(mean), rig)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@every_net
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "random_clientwise"])
def test_bytes_by_arithmetic(name: str, net: str) -> None:
    """Header 10, part header 7, one letter of name, checksum 4; float64 values; docs/wire-format.md."""
    for exchange in exchanges(name, net):
        if not exchange.plan.timed:
            continue
        layout, event = exchange.rig.context.layout, exchange.event
        fixed, size = 10 + 7 + 1 + 4, layout.size
        rest = size - layout.prunable_size
        down = up = 8 * size
        if name == "ssfl":
            down = up = 8 + 8 * (int(layout.prunable_size * DENSITY) + rest)
        if name == "random_clientwise":
            kept = sum(int((b - a) * DENSITY) for _, a, b in layout.prunable_segments)
            up = -(-size // 8) + 8 * (kept + rest)
        assert event["downlink_bytes"] == PER_ROUND * (fixed + down)
        assert event["uplink_bytes"] == PER_ROUND * (fixed + up)
