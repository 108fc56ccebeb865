"""Order and slices of divided work, on generated small cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssfl.algorithms.dense import dense_training
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.client.runner import EVALUATION_BATCH
from ssfl.engine.executors.scheduling import in_order, longest_first, row_slices
from tests.support.executor_cases import echo_jobs
from tests.support.faults import echo
from tests.support.rigs import float_data, make_runner, tiny_net


@given(st.permutations(range(9)))
def test_in_order_is_a_sort_that_waits_no_longer_than_it_must(numbers: list[int]) -> None:
    seen: list[int] = []

    def come() -> Iterator[tuple[int, str]]:
        for number in numbers:
            seen.append(number)
            yield number, str(number)

    for place, item in enumerate(in_order(come())):
        assert item == str(place)
        # Each item was yielded directly after the arrival that completed 0..place.
        assert len(seen) == max(numbers.index(n) for n in range(place + 1)) + 1


@given(st.integers(0, 2000), st.integers(1, 9))
def test_slices_are_a_partition_into_whole_batches(total: int, workers: int) -> None:
    slices = row_slices(total, workers)
    assert [row for first, last in slices for row in range(first, last)] == list(range(total))
    assert len(slices) == workers
    assert all(first % EVALUATION_BATCH == 0 for first, _ in slices)


@pytest.mark.parametrize("window", [1, 3, 4, 20, None])
def test_longest_first_keeps_few_outcomes_waiting(window: int | None) -> None:
    sizes = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)  # the last is the longest: the worst case
    spec = FitSpec(1, 4, ExponentialDecay(0.1, 1.0))
    tasks = {"train": dense_training(spec), "echo": echo()}
    runner = make_runner(float_data(sizes), tiny_net(), tasks)
    jobs = echo_jobs("train", range(len(sizes)))
    numbers = longest_first(jobs, runner, window)
    assert sorted(numbers) == list(range(len(sizes)))
    begun = most = 0
    for done, _ in enumerate(numbers, 1):
        while begun in numbers[:done]:  # the outcomes that are yielded, in the jobs' order
            begun += 1
        most = max(most, done - begun)
    assert most < (window or len(sizes))
    if window is None:
        assert numbers == list(reversed(range(len(sizes))))
    assert longest_first(echo_jobs("echo", range(len(sizes))), runner, window) == list(range(len(sizes)))
