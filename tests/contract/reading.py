"""Reads events and replies for the contract's tests, without the package's readers; laws for any set of replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssfl.algorithms.base import ClientReply
from ssfl.core.layout import Layout
from ssfl.core.payloads import DenseValues, MaskedValues, Payload, SparseValues
from tests.contract.exchanged import Exchanged
from tests.contract.table import DENSITY, SIZES
from tests.support.layouts import prunable_coordinates
from tests.support.rigs import Event, Rig

TIMES = {
    "training_seconds",
    "aggregation_seconds",
    "evaluation_seconds",
    "checkpoint_seconds",
    "wall_seconds",
}


def timeless(events: list[Event]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in TIMES} for e in events]


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


def sparse(payload: Payload) -> SparseValues:
    part = payload.parts["w"]
    assert isinstance(part, SparseValues)
    return part


def per_tensor(layout: Layout, bits: Tensor) -> list[int]:
    return [int(t.count_nonzero()) for t in layout.views(bits[: layout.trained_size]).values()]


def as_seen(name: str, model: Tensor, rig: Rig) -> Tensor:
    """What the network sees of a model [P]: SparsyFed's is sign(v) |v|^1.25 in every weight matrix and filter."""
    if not name.startswith("sparsyfed"):
        return model
    prunable = prunable_coordinates(rig.context.layout)
    return torch.where(prunable, model.sign() * model.abs().pow(1.25), model)


def expected_count(name: str, sizes: list[int]) -> int:
    if name == "random_layerwise":
        return sum(int(n * DENSITY) for n in sizes)
    return int(sum(sizes) * DENSITY)


def assert_weighted_mean(name: str, exchange: Exchanged) -> None:
    """The global model is the mean of the replies by numbers of examples, by numpy."""
    rig = exchange.rig
    mask = rig.algorithm.global_mask(exchange.before, rig.context)
    models = [dense_vector(reply, mask) for reply in exchange.replies]
    weights = [SIZES[reply.client] for reply in exchange.replies]
    mean = np.average(np.stack([m.numpy() for m in models if m is not None]), axis=0, weights=weights)
    ours = rig.algorithm.weights_to_evaluate(exchange.after, rig.context)
    assert ours is not None
    expected = as_seen(name, torch.from_numpy(mean), rig)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


def assert_support_of_uploads(exchange: Exchanged) -> None:
    """Every upload keeps its share, and the global model has no weight that none of them has."""
    layout = exchange.rig.context.layout
    union = torch.zeros(layout.prunable_size, dtype=torch.bool)
    for reply in exchange.replies:
        bits = layout.take_prunable(sparse(reply.payload).bits)
        assert int(bits.count_nonzero()) == round(DENSITY * layout.prunable_size)
        union |= bits
    mask = exchange.rig.algorithm.global_mask(exchange.after, exchange.rig.context)
    assert mask is not None
    kept = layout.take_prunable(mask)
    assert not bool((kept & ~union).any())
    assert exchange.event["density"] == int(kept.count_nonzero()) / layout.prunable_size


def assert_densities(name: str, run: Sequence[Exchanged], rounds: int) -> None:
    """From the mask on, after every round: exactly the density, nothing outside it, and only weights are masked."""
    seen = 0
    for exchange in run:
        rig, layout = exchange.rig, exchange.rig.context.layout
        mask = rig.algorithm.global_mask(exchange.after, rig.context)
        if mask is None:
            assert exchange.plan.phase == "warmup"
            continue
        sizes = [b - a for _, a, b in layout.prunable_segments]
        assert int(layout.take_prunable(mask).count_nonzero()) == expected_count(name, sizes)
        assert bool(mask[~prunable_coordinates(layout)].all())
        theta = rig.algorithm.weights_to_evaluate(exchange.after, rig.context)
        assert theta is not None
        assert int(theta[~mask].count_nonzero()) == 0
        assert exchange.event["density"] == expected_count(name, sizes) / sum(sizes)
        seen += exchange.plan.timed
    assert seen == rounds - (name == "ssfl_warm_up")
