"""Proportional division, by hand and compared with exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssfl.data.errors import DataError
from ssfl.data.split import largest_remainders, split_by_site, split_test, stratified_split

quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [
        (10, [1, 1, 1], [4, 3, 3]),  # 3.33 each; a tie goes to the smaller index
        (10, [6, 3, 1], [6, 3, 1]),
        (7, [5, 3, 2], [4, 2, 1]),  # 3.5, 2.1, 1.4: one left, to the largest fraction .5
        (5, [2, 0, 3], [2, 0, 3]),
        (3, [1, 2, 4, 0], [0, 1, 2, 0]),  # 0.43, 0.86, 1.71: the two left go to .86 and .71
        (0, [1, 2], [0, 0]),
    ],
)
def test_largest_remainders_by_hand(total: int, weights: list[int], expected: list[int]) -> None:
    assert largest_remainders(total, np.array(weights)).tolist() == expected


@quick
@given(st.integers(0, 500), st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_largest_remainders_against_exact_fractions(total: int, weights: list[int]) -> None:
    assume(sum(weights) > 0)
    quotas = [Fraction(total * weight, sum(weights)) for weight in weights]
    expected = [int(quota) for quota in quotas]
    order = sorted(range(len(weights)), key=lambda k: (expected[k] - quotas[k], k))
    for k in order[: total - sum(expected)]:
        expected[k] += 1
    assert largest_remainders(total, np.array(weights)).tolist() == expected
    floats = largest_remainders(total, np.array(weights) / 64)  # exact in binary
    assert floats.sum() == total
    assert all(abs(count - quota) < 1 for count, quota in zip(floats.tolist(), quotas))


def test_split_test_by_hand() -> None:
    """Class 0: 5 test rows for shares 3 : 1 -> 3.75, 1.25 -> 4, 1. Class 1: 4 rows, client 1 only."""
    train_y = np.array([0, 0, 0, 0, 1, 1])
    parts = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    test_y = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    tests = split_test(test_y, train_y, parts, seed=3)
    assert [np.bincount(test_y[part], minlength=2).tolist() for part in tests] == [[4, 0], [1, 4]]
    assert sorted(np.concatenate(tests).tolist()) == list(range(9))


@quick
@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 5))
def test_split_test_is_a_disjoint_cover_in_proportion(seed: int, clients: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    train_y = rng.integers(0, classes, 200)
    test_y = rng.integers(0, classes, 90)
    parts = np.array_split(rng.permutation(200), clients)
    tests = split_test(test_y, train_y, parts, seed)
    assert sorted(np.concatenate(tests).tolist()) == list(range(90))
    for label in range(classes):
        total, of_class = np.sum(test_y == label), np.sum(train_y == label)
        for part, test in zip(parts, tests):
            if of_class:
                quota = total * np.sum(train_y[part] == label) / of_class
                assert abs(np.sum(test_y[test] == label) - quota) < 1


def test_split_test_of_a_class_that_nobody_trains_goes_by_size() -> None:
    tests = split_test(np.array([5] * 4), np.zeros(8, dtype=np.int64), [np.arange(6), np.arange(6, 8)], 0)
    assert [len(part) for part in tests] == [3, 1]


def test_split_by_site_follows_the_sites() -> None:
    parts = split_by_site(np.array([4, 2, 2]), np.array([2, 4, 4, 9]))
    assert [part.tolist() for part in parts] == [[1, 2], [0], []]
    with pytest.raises(DataError, match="test_site names 1 sites without training rows"):
        split_by_site(np.array([4, 3]), np.array([2, 4]))
    with pytest.raises(DataError, match=r"\(first: york\)"):
        split_by_site(np.array([1, 2]), np.array([0, 1]), ("bath", "ulm", "york"))


@quick
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 9))
def test_stratified_split_keeps_proportions(sizes: list[int], seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rest, held = stratified_split(y, 0.2, seed)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(y)))
    for label, size in enumerate(sizes):
        assert np.sum(y[rest] == label) >= 1
        assert abs(np.sum(y[held] == label) - 0.2 * size) < 1
