"""Means against numpy, tallies as sums, random streams by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.aggregate import weighted_mean
from ssfl.core.metrics import Tally
from ssfl.core.rng import stream

CLASSES = 3
weights = st.lists(st.integers(1, 1000).map(float), min_size=1, max_size=8)


def vectors(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


@given(weights, st.integers(0, 10))
def test_weighted_mean_equals_numpys(given_weights: list[float], seed: int) -> None:
    rows = vectors(len(given_weights), seed)
    ours = weighted_mean(zip(rows, given_weights, strict=True))
    np.testing.assert_allclose(
        ours, np.average(rows.numpy(), axis=0, weights=given_weights), rtol=1e-12, atol=1e-14
    )


@given(weights, st.integers(0, 10))
def test_float32_keeps_the_stated_error(given_weights: list[float], seed: int) -> None:
    """The error is at most 18 float32 roundings of the summed magnitudes, compared with the sum in float64."""
    rows = vectors(len(given_weights), seed, torch.float32)
    mean = weighted_mean(zip(rows, given_weights, strict=True))
    assert mean.dtype == torch.float32
    exact, size = (np.average(r.double().numpy(), axis=0, weights=given_weights) for r in (rows, rows.abs()))
    assert (np.abs(mean.double().numpy() - exact) <= 18 * 2.0**-24 * size + 1e-37).all()


@pytest.mark.parametrize("items", [[], [(torch.ones(3), 0.0)]])
def test_a_mean_over_nobody_is_refused(items: list[tuple[Tensor, float]]) -> None:
    with pytest.raises(ValueError, match="no clients"):
        weighted_mean(items)


def tally(rows: list[tuple[float, bool, int]]) -> Tally:
    losses = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    hits = torch.tensor([r[1] for r in rows], dtype=torch.bool)
    labels = torch.tensor([r[2] for r in rows], dtype=torch.int64)
    return Tally.of(losses, hits, labels, CLASSES)


# Losses are multiples of 1/16, so sums are exact and can be compared bit for bit.
examples = st.lists(
    st.tuples(st.integers(0, 160).map(lambda n: n / 16), st.booleans(), st.integers(0, CLASSES - 1)),
    max_size=12,
)


def setup_of(t: Tally) -> tuple[list[int], list[int], float]:
    return t.correct.tolist(), t.total.tolist(), t.loss_sum


@given(examples, examples, examples)
def test_tallies_are_a_monoid_and_follow_concatenation(
    a: list[tuple[float, bool, int]], b: list[tuple[float, bool, int]], c: list[tuple[float, bool, int]]
) -> None:
    left = setup_of((tally(a) + tally(b)) + tally(c))
    assert left == setup_of(tally(a) + (tally(b) + tally(c))) == setup_of(tally(a + b + c))
    assert setup_of(tally(a) + tally(b)) == setup_of(tally(b) + tally(a))
    assert setup_of(tally(a) + Tally.empty(CLASSES)) == setup_of(tally(a))


def test_tally_by_hand() -> None:
    got = tally([(0.5, True, 0), (1.5, False, 0), (1.0, True, 2)])
    assert (got.examples, got.accuracy, got.loss) == (3, 2 / 3, 1.0)
    assert got.class_accuracy == [0.5, None, 1.0]
    nothing = Tally.empty(CLASSES)
    assert math.isnan(nothing.accuracy)
    assert math.isnan(nothing.loss)


def draw(*path: str | int, seed: int = 7) -> list[int]:
    return torch.randint(1 << 40, (4,), generator=stream(seed, *path)).tolist()


def test_a_stream_depends_on_its_name_alone() -> None:
    first = draw("batch", 3, 5)
    draw("batch", 0, 0)
    torch.rand(100)
    assert draw("batch", 3, 5) == first
    names: list[tuple[str | int, ...]] = [
        ("batch", 3, 5),
        ("batch", 5, 3),
        ("batch", 35),
        ("batch3", 5),
        ("probe", 3, 5),
    ]
    assert len({tuple(draw(*n)) for n in names}) == len(names)
    assert draw("batch", 3, 5, seed=8) != first


def test_a_stream_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw("mask")
    assert torch.random.get_rng_state().equal(before)


def test_streams_are_the_same_in_every_version() -> None:
    """BLAKE2b of '[550, "batch", 3, 5]', computed with b2sum -l 64; another value would change every run."""
    digest = bytes.fromhex("4017430f4c309e91")
    assert stream(550, "batch", 3, 5).initial_seed() == int.from_bytes(digest, "little") // 2
