"""The largest values of segments: those that a stable sort puts first."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.masks import top_k_in_spans, top_k_mask
from ssfl.native import available
from ssfl.native.memory_bound.selection import largest, selects

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)

floats = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1.0, 1e-45])


def sorted_first(values: list[float], keep: int) -> list[bool]:
    """By decreasing value, equal ones by index."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    chosen = set(order[: max(keep, 0)])
    return [i in chosen for i in range(len(values))]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.lists(floats, max_size=40), st.integers(-1, 42)), max_size=5))
def test_the_largest_of_every_segment(parts: list[tuple[list[float], int]]) -> None:
    values = [value for part, _ in parts for value in part]
    ends = [sum(len(part) for part, _ in parts[:k]) for k in range(len(parts) + 1)]
    spans = list(itertools.pairwise(ends))
    found = largest(torch.tensor(values, dtype=torch.float32), [keep for _, keep in parts], spans)
    assert found.tolist() == [one for part, keep in parts for one in sorted_first(part, keep)]


@pytest.mark.parametrize("size", [1, 31, 32, 4097, 200_000])
@pytest.mark.parametrize("kind", ["normal", "few levels", "equal", "tiny", "half masked"])
def test_as_pytorchs_sort(size: int, kind: str) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    scores = {
        "normal": scores,
        "few levels": scores.round(),
        "equal": torch.full_like(scores, -2.5),
        "tiny": scores * 1e-42,
        "half masked": scores.masked_fill(scores < 0, -torch.inf),
    }[kind]
    for keep in (0, 1, size // 3, size - 1, size):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[scores.sort(descending=True, stable=True).indices[:keep]] = True
        assert largest(scores, [keep], [(0, size)]).equal(expected)
        assert top_k_mask(scores, keep).equal(expected)


@given(
    st.lists(st.integers(-2, 2), min_size=9, max_size=9), st.lists(st.integers(-1, 5), min_size=2, max_size=2)
)
def test_segments_of_doubles_and_floats_are_alike(values: list[int], counts: list[int]) -> None:
    """Doubles take PyTorch's operations."""
    spans = [(1, 4), (4, 8)]
    scores = torch.tensor(values, dtype=torch.float64)
    assert not selects(scores)
    found = top_k_in_spans(scores.float(), counts, spans)
    assert top_k_in_spans(scores, counts, spans).equal(found)
    assert not bool(found[0])
    assert not bool(found[8])


def test_nan_is_refused_before_anything_is_selected() -> None:
    scores = torch.tensor([1.0, 2.0, math.nan])
    with pytest.raises(ValueError, match="not a number"):
        largest(scores, [1, 1], [(0, 2), (2, 3)])
    assert largest(scores, [1], [(0, 2)]).tolist() == [False, True, False]


@pytest.mark.parametrize("spans", [[(0, 4)], [(-1, 2)], [(2, 1)], []])
def test_spans_outside_the_scores_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="1 counts for spans"):
        largest(torch.ones(3), [1], spans)


@pytest.mark.parametrize(
    "scores",
    [torch.ones(2, 3).t(), torch.ones(4)[::2], torch.ones(3).bfloat16(), torch.ones(3, device="meta")],
)
def test_what_is_left_to_pytorch(scores: Tensor) -> None:
    assert not selects(scores)
