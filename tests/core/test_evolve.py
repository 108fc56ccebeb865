"""Drop and grow: the authors' counts and rates, a simple per-entry implementation, and invariants."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.evolve import (
    cosine_drop_rate,
    drop_count,
    drop_counts,
    drop_smallest,
    grow_largest,
    grow_random,
)
from ssfl.core.gossip import overlap_mean
from ssfl.core.payloads import SparseValues, pack_sparse
from ssfl.core.topology import neighbours

ORACLES: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parent.parent / "oracles" / "dispfl.json").read_text()
)
SPANS = [(0, 7), (7, 20), (20, 21)]
SIZE = 21


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A mask, weights (zero outside the mask) and gradients."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(SIZE, generator=generator) < 0.6
    return (
        mask,
        torch.randn(SIZE, generator=generator) * mask,
        torch.randn(SIZE, generator=generator),
    )


@pytest.mark.parametrize("t", [0, 100, 250, 499])
def test_authors_drop_rates(t: int) -> None:
    assert cosine_drop_rate(0.5, t + 1, 500) == pytest.approx(ORACLES["drop_rate"][str(t)], rel=1e-9)


def test_authors_counts() -> None:
    kept, counts = ORACLES["erk"]["small_net"]["0.5"]["mask_ones"], ORACLES["fire_counts"]["0"]
    assert {name: drop_count(0.5, n) for name, n in kept.items()} == counts


@given(st.floats(0.0, 1.0), st.integers(0, 3_000_000))
def test_count_is_the_ceiling_of_a_float32_product(rate: float, kept: int) -> None:
    assert drop_count(rate, kept) == math.ceil(np.float32(rate) * np.float32(kept))


def test_a_positive_rate_swaps_at_least_one() -> None:
    assert drop_count(cosine_drop_rate(0.5, 500, 500), 11) == 1
    assert drop_count(0.3, 0) == 0


@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_against_entry_by_entry_search(seed: int, rate: float) -> None:
    mask, weights, gradient = drawn(seed)
    counts = drop_counts(mask, rate, SPANS)
    left = drop_smallest(mask, weights, counts, SPANS)
    grown = grow_largest(left, gradient, counts, SPANS)
    for (a, b), count in zip(SPANS, counts, strict=True):
        held = sorted((i for i in range(a, b) if mask[i]), key=lambda i: abs(float(weights[i])))
        assert {i for i in range(a, b) if left[i]} == set(held[count:])
        free = sorted((i for i in range(a, b) if not left[i]), key=lambda i: -abs(float(gradient[i])))
        assert {i for i in range(a, b) if grown[i]} == set(held[count:]) | set(free[:count])


@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_random_growth_keeps_every_count(seed: int, rate: float) -> None:
    mask, weights, _ = drawn(seed)
    counts = drop_counts(mask, rate, SPANS)
    left = drop_smallest(mask, weights, counts, SPANS)
    grown = grow_random(left, counts, SPANS, torch.Generator().manual_seed(seed))
    assert bool((left <= grown).all())
    for a, b in SPANS:
        assert int(grown[a:b].count_nonzero()) == int(mask[a:b].count_nonzero())


def test_random_growth_reaches_all_free_places_alike() -> None:
    mask = torch.arange(SIZE) < 5
    hits = torch.zeros(SIZE)
    for seed in range(600):
        hits += grow_random(mask, [1, 0, 0], SPANS, torch.Generator().manual_seed(seed)).float()
    assert hits[5:7].tolist() == pytest.approx([300, 300], abs=60)
    assert float(hits[7:].sum()) == 0


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_overlap_mean_is_its_formula(seed: int, models: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(models, SIZE, generator=generator) < 0.5
    weights = torch.randn(models, SIZE, generator=generator) * masks
    found = overlap_mean([pack_sparse(w, m) for w, m in zip(weights, masks, strict=True)])
    for i in range(SIZE):
        holders = [float(weights[j, i]) for j in range(models) if masks[j, i]]
        assert float(found[i]) == pytest.approx(sum(holders) / len(holders) if holders else 0.0, abs=1e-6)


def test_overlap_mean_of_one_model_is_that_model() -> None:
    mask, weights, _ = drawn(3)
    assert overlap_mean([pack_sparse(weights, mask)]).equal(weights)
    with pytest.raises(ValueError, match="no models"):
        overlap_mean([])


def test_overlap_mean_is_order_free() -> None:
    parts: list[SparseValues] = [pack_sparse(w, m) for m, w, _ in map(drawn, range(6))]
    assert overlap_mean(parts).equal(overlap_mean(parts[::-1]))


def test_topologies() -> None:
    clients, generator = [0, 2, 5, 9], torch.Generator().manual_seed(0)
    assert neighbours("ring", 0, clients, 1, generator) == [2, 9]
    assert neighbours("ring", 9, clients, 1, generator) == [0, 5]
    assert neighbours("ring", 4, [4, 8], 1, generator) == [8]
    assert neighbours("ring", 4, [4], 1, generator) == []
    assert neighbours("full", 5, clients, 1, generator) == [0, 2, 9]
    assert neighbours("random", 5, clients, 10, generator) == [0, 2, 9]
    drawn_pairs = {tuple(neighbours("random", 2, clients, 2, generator)) for _ in range(60)}
    assert drawn_pairs == {(0, 5), (0, 9), (5, 9)}
    with pytest.raises(ValueError, match="random, ring, full"):
        neighbours("star", 0, clients, 1, generator)  # type: ignore[arg-type]
