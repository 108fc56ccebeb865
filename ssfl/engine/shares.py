"""Work shared over threads and processes: who begins first, how outcomes come in order, who tests which rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from ssfl.engine.jobs import Job
from ssfl.engine.local import EVALUATION_BATCH, ClientRunner

_Item = TypeVar("_Item")


def longest_first(jobs: Sequence[Job], runner: ClientRunner) -> list[int]:
    """The jobs' numbers, where clients train the one with the most examples first, so that none ends alone.

    Other phases ask every client and cost them the same: in order, so that few outcomes wait for an earlier one.
    """
    numbers = list(range(len(jobs)))
    if jobs and runner.tasks[jobs[0].phase].fit is not None:
        numbers.sort(key=lambda i: -runner.federation.examples(jobs[i].instruction.client))
    return numbers


def in_order(numbered: Iterable[tuple[int, _Item]]) -> Iterator[_Item]:
    """Items numbered 0, 1, 2, … that come in any order, each given as soon as all before it are."""
    ready: dict[int, _Item] = {}
    given = 0
    for number, item in numbered:
        ready[number] = item
        while given in ready:
            yield ready.pop(given)
            given += 1


def row_slices(total: int, workers: int) -> list[tuple[int, int]]:
    """Rows first..last-1 for each of `workers`, some without any: whole evaluation batches, so that every forward
    pass is the one of a single worker, and gives its bits."""
    batches = -(-total // EVALUATION_BATCH)
    ends = [min(batches * w // workers * EVALUATION_BATCH, total) for w in range(workers + 1)]
    return list(pairwise(ends))
