"""Scheduling over threads and processes: the order of jobs, the order of outcomes, the division of test rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.runner import EVALUATION_BATCH, ClientRunner

_Item = TypeVar("_Item")


def longest_first(jobs: Sequence[ClientJob], runner: ClientRunner, window: int | None = None) -> list[int]:
    """The jobs' positions; in training, those with the most examples first, so that workers finish together.

    window: jobs are sorted within groups of at most this size, which limits the outcomes that wait for an earlier one;
    None: all jobs. In other phases all jobs cost the same and keep their order.
    """
    numbers = list(range(len(jobs)))
    if not jobs or runner.tasks[jobs[0].phase].fit is None:
        return numbers
    parts = 1 if window is None else -(-len(jobs) // window)
    ends = [
        len(jobs) * part // parts for part in range(parts + 1)
    ]  # groups of similar size: in a small last one workers would finish at different times
    return [
        number
        for first, last in pairwise(ends)
        for number in sorted(numbers[first:last], key=lambda i: -runner.federation.examples(jobs[i].client))
    ]


def in_order(numbered: Iterable[tuple[int, _Item]]) -> Iterator[_Item]:
    """Items numbered 0, 1, 2, … that arrive in any order; each is yielded after all before it."""
    ready: dict[int, _Item] = {}
    given = 0
    for number, item in numbered:
        ready[number] = item
        while given in ready:
            yield ready.pop(given)
            given += 1


def row_slices(total: int, workers: int) -> list[tuple[int, int]]:
    """Rows first..last-1 for each of `workers` (some may have none), in whole evaluation batches, so that every forward
    pass and its bits are the same as with one worker."""
    batches = -(-total // EVALUATION_BATCH)
    ends = [min(batches * w // workers * EVALUATION_BATCH, total) for w in range(workers + 1)]
    return list(pairwise(ends))
