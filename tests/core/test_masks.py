"""Masks: counts by hand, properties over random scores, random masks' frequencies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssfl.core.masks import (
    empty_layers,
    kept_count,
    random_global_mask,
    random_layerwise_mask,
    shuffled_within_layers,
    top_k_mask,
    top_k_mask_with_floor,
)

few_levels = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=40)
"""Scores with many ties."""


def stable_top_k(scores: list[float], keep: int) -> list[bool]:
    """Sort by decreasing score, equal ones by index; keep the first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    head = set(order[: max(keep, 0)])
    return [i in head for i in range(len(scores))]


@given(few_levels, st.integers(-1, 45))
def test_top_k_is_exact_and_breaks_ties_by_index(scores: list[float], keep: int) -> None:
    assert top_k_mask(torch.tensor(scores), keep).tolist() == stable_top_k(scores, keep)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@given(few_levels, st.integers(-1, 45))
def test_top_k_of_other_types(dtype: torch.dtype, scores: list[float], keep: int) -> None:
    assert top_k_mask(torch.tensor(scores, dtype=dtype), keep).tolist() == stable_top_k(scores, keep)


@given(few_levels, st.integers(1, 45))
def test_keeping_ties_is_a_threshold_at_the_keep_th_largest(scores: list[float], keep: int) -> None:
    mask = top_k_mask(torch.tensor(scores), keep, "keep").tolist()
    level = sorted(scores, reverse=True)[min(keep, len(scores)) - 1]
    assert mask == [s >= level for s in scores]


def test_ties_by_hand() -> None:
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])
    assert top_k_mask(scores, 3).int().tolist() == [1, 1, 1, 0, 0, 0]
    assert top_k_mask(scores, 3, "keep").int().tolist() == [1, 1, 1, 1, 0, 0]
    assert not top_k_mask(scores, 0, "keep").any()


def test_infinite_scores_are_ordered_and_nan_is_refused() -> None:
    scores = torch.tensor([1.0, float("inf"), -float("inf")])
    assert top_k_mask(scores, 1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="not a number"):
        top_k_mask(torch.tensor([1.0, float("nan")]), 1)
    with pytest.raises(ValueError, match="allowed are exact, keep"):
        top_k_mask(scores, 1, "first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "density", "kept"), [(1528, 0.5, 764), (1528, 0.2, 305), (7, 0.99, 6), (5, 1.0, 5), (5, 0.0, 0)]
)
def test_kept_count(size: int, density: float, kept: int) -> None:
    assert kept_count(size, density) == kept


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_a_density_outside_0_to_1_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match="density"):
        kept_count(10, density)


def test_floor_by_hand() -> None:
    """Layer a has all the largest scores; the floor keeps the best weight of b and of c, the others are of a."""
    scores = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 0.5, 0.25])
    segments = [("a", 0, 4), ("b", 4, 6), ("c", 6, 8)]
    assert top_k_mask_with_floor(scores, 4, segments, 0.1).int().tolist() == [1, 1, 0, 0, 0, 1, 1, 0]
    assert top_k_mask_with_floor(scores, 4, segments, 0.0).int().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert top_k_mask_with_floor(scores, 3, segments, 0.1).int().tolist() == [1, 0, 0, 0, 0, 1, 1, 0]
    level = torch.tensor([9.0, 7.0, 7.0, 7.0, 1.0, 2.0, 0.5, 0.25])
    assert top_k_mask_with_floor(level, 4, segments, 0.1, "exact").int().tolist() == [1, 1, 0, 0, 0, 1, 1, 0]
    assert top_k_mask_with_floor(level, 4, segments, 0.1, "keep").int().tolist() == [1, 1, 1, 1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="a floor of"):
        top_k_mask_with_floor(scores, 2, segments, 0.1)


@given(st.lists(few_levels, min_size=1, max_size=4), st.floats(0.01, 1.0), st.integers(0, 100))
def test_floor_properties(layers: list[list[float]], floor: float, extra: int) -> None:
    scores = torch.tensor([s for layer in layers for s in layer])
    ends = torch.tensor([len(layer) for layer in layers]).cumsum(0).tolist()
    segments = [(f"l{i}", e - len(layer), e) for i, (layer, e) in enumerate(zip(layers, ends, strict=True))]
    least = [max(1, int((b - a) * floor)) for _, a, b in segments]
    keep = min(sum(least) + extra, len(scores))
    mask = top_k_mask_with_floor(scores, keep, segments, floor)
    assert int(mask.sum()) == keep
    assert all(int(mask[a:b].sum()) >= n for (_, a, b), n in zip(segments, least, strict=True))
    for _, a, b in segments:  # inside a layer the best are kept
        kept, dropped = scores[a:b][mask[a:b]], scores[a:b][~mask[a:b]]
        assert not len(dropped) or float(kept.min()) >= float(dropped.max())


@given(st.integers(1, 200), st.floats(0.0, 1.0), st.integers(0, 5))
def test_random_masks_have_exact_counts(size: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert int(random_global_mask(size, density, generator).sum()) == int(size * density)
    segments = [("a", 0, size), ("b", size, 3 * size)]
    mask = random_layerwise_mask(segments, density, generator)
    assert [int(mask[a:b].sum()) for _, a, b in segments] == [int(size * density), int(2 * size * density)]


def test_random_masks_are_uniform() -> None:
    """Each of 20 places is kept 1000 times in 2000 draws, within five standard deviations (sqrt(500))."""
    generator = torch.Generator().manual_seed(0)
    hits = sum(random_global_mask(20, 0.5, generator).double() for _ in range(2000))
    assert isinstance(hits, torch.Tensor)
    assert float((hits - 1000).abs().max()) < 5 * 500**0.5


def test_empty_layers() -> None:
    bits = torch.tensor([True, False, False, False, True])
    assert empty_layers(bits, [("a", 0, 2), ("b", 2, 4), ("c", 4, 5)]) == ["b"]


def test_shuffling_within_layers_keeps_counts_and_forgets_places() -> None:
    segments = [("a", 0, 40), ("b", 40, 100)]
    mask = torch.zeros(100, dtype=torch.bool)
    mask[:10] = mask[90:] = True
    draws = [shuffled_within_layers(mask, segments, torch.Generator().manual_seed(i)) for i in range(400)]
    assert {(int(d[:40].sum()), int(d[40:].sum())) for d in draws} == {(10, 10)}
    # Shares of 400 draws at 1/4 and 1/6: deviations 0.022 and 0.019, five of them allowed.
    frequency = torch.stack(draws).double().mean(0)
    assert bool(((frequency[:40] - 1 / 4).abs() < 0.11).all())
    assert bool(((frequency[40:] - 1 / 6).abs() < 0.095).all())
    assert shuffled_within_layers(mask, segments, torch.Generator().manual_seed(3)).equal(draws[3])
