"""Order and slices of shared work, on all small cases that a generator finds."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from ssfl.engine.local import EVALUATION_BATCH
from ssfl.engine.shares import in_order, row_slices


@given(st.permutations(range(9)))
def test_in_order_is_a_sort_that_waits_no_longer_than_it_must(numbers: list[int]) -> None:
    seen: list[int] = []

    def come() -> Iterator[tuple[int, str]]:
        for number in numbers:
            seen.append(number)
            yield number, str(number)

    for place, item in enumerate(in_order(come())):
        assert item == str(place)
        # No later arrival was read than the one that completed 0..place.
        assert len(seen) == max(numbers.index(n) for n in range(place + 1)) + 1


@given(st.integers(0, 2000), st.integers(1, 9))
def test_slices_are_a_partition_into_whole_batches(total: int, workers: int) -> None:
    slices = row_slices(total, workers)
    assert [row for first, last in slices for row in range(first, last)] == list(range(total))
    assert len(slices) == workers
    assert all(first % EVALUATION_BATCH == 0 for first, _ in slices)
