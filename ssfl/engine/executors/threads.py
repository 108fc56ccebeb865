"""Threads with one network each: the executor for a few cores, in one process.

PyTorch releases Python's lock during an operation and during a whole backward pass, so a few threads use as many
cores. They share data, weights and libraries; nothing is copied or pickled. Every thread computes with one intra-op
thread, and random streams are named by client and round, so the bits are those of the sequential executor.
"""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.engine.client.data_source import evaluation_labels
from ssfl.engine.client.errors import Cancelled
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.example_rules import draws_in_training
from ssfl.engine.compute.malloc import give_back_freed_memory
from ssfl.engine.executors.scheduling import in_order, longest_first, row_slices
from ssfl.errors import UserError

AHEAD = 4
"""Jobs per thread that may be started before the first of their outcomes is yielded. As many outcomes may wait for an
earlier one, so at most 2 * AHEAD outcomes per thread are in memory."""
_Answer = TypeVar("_Answer")


class UnthreadableError(UserError):
    """A network that draws random numbers in training: threads share PyTorch's generator, so the draws would vary."""


@final
class ThreadExecutor:
    """Jobs over `workers` threads; outcomes in the jobs' order, whichever thread computes them."""

    def __init__(self, runner: ClientRunner, workers: int) -> None:
        check_threadable(runner.module, runner.federation.input_shape, runner.input_dtype)
        self.runner = runner
        self.workers = workers
        self._ended = threading.Event()
        self._free: SimpleQueue[ClientRunner] = SimpleQueue()
        copies = [copy.deepcopy(runner.module) for _ in range(workers - 1)]
        # One thread uses the given network itself, which saves one copy.
        self._free.put(runner.cancelled_by(self._check_cancelled))
        for module in copies:
            self._free.put(replace(runner, module=module, check_cancelled=self._check_cancelled))
        self._pool = ThreadPoolExecutor(
            workers, "client", initializer=_begin, initargs=(processors_of(workers),)
        )

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """One outcome per job, in the jobs' order; in training, the longest jobs start first."""
        numbers = longest_first(jobs, self.runner, window=AHEAD * self.workers)
        return in_order(self._map([_work(jobs[i]) for i in numbers], numbers))

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See `Executor.predict`; in slices of whole evaluation batches, one slice per thread."""
        slices = row_slices(len(evaluation_labels(self.runner.federation)), self.workers)
        calls = [_rows(theta, first, last) for first, last in slices]
        answers = [answer for _, answer in self._map(calls, range(len(calls)))]
        return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])

    def close(self) -> None:
        """End the threads: each stops before its next minibatch. May be called again."""
        self._ended.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _map(
        self, calls: Sequence[Callable[[ClientRunner], _Answer]], names: Sequence[int]
    ) -> Iterator[tuple[int, _Answer]]:
        """(name, answer) of each call, started and yielded in order, at most `AHEAD` per thread at a time."""
        begun: deque[tuple[int, Future[_Answer]]] = deque()
        waiting = iter(zip(names, calls, strict=True))
        # Every fit seeds the generator (although networks that draw are refused), so its state is restored afterwards.
        before = torch.default_generator.get_state()
        try:
            while True:
                for name, call in waiting:
                    begun.append((name, self._pool.submit(self._compute, call)))
                    if len(begun) == AHEAD * self.workers:
                        break
                if not begun:
                    return
                name, future = begun.popleft()
                yield name, future.result()
        finally:  # after an error, or if the caller stops early
            for _, future in begun:
                future.cancel()
            torch.default_generator.set_state(before)
            give_back_freed_memory(self.runner.model_bytes)

    def _compute(self, call: Callable[[ClientRunner], _Answer]) -> _Answer:
        runner = self._free.get()
        try:
            return call(runner)
        finally:
            self._free.put(runner)

    def _check_cancelled(self) -> None:
        if self._ended.is_set():
            raise Cancelled


def processors_of(workers: int) -> SimpleQueue[int] | None:
    """A processor for each thread if there are as many threads as processors that this process may use, else None.

    Threads that pass Python's lock to each other look idle to the scheduler, which may keep them on one processor after
    a pause: a round of the small CNN took a quarter longer (docs/performance.md). With fewer threads than processors
    the scheduler decides; otherwise two runs at the same time would use the same processors.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    available = sorted(os.sched_getaffinity(0))
    if len(available) != workers:
        return None
    places: SimpleQueue[int] = SimpleQueue()
    for processor in available:
        places.put(processor)
    return places


def _begin(places: SimpleQueue[int] | None) -> None:
    """Initialise a thread."""
    torch.set_num_threads(1)
    if places is not None:
        os.sched_setaffinity(0, {places.get()})  # of this thread only


def check_threadable(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Raises UnthreadableError if a forward pass in training uses PyTorch's generator (dropout, stochastic depth).

    dtype: of the inputs, if they are not floats.
    """
    if draws_in_training(module, input_shape, dtype):
        raise UnthreadableError(
            "engine.executor=threads: a layer of this network draws at random in training, and threads share one "
            "generator; use engine.executor=sequential or processes"
        )


def _work(job: ClientJob) -> Callable[[ClientRunner], Outcome]:
    return lambda runner: runner.run(job)


def _rows(theta: Tensor, first: int, last: int) -> Callable[[ClientRunner], tuple[Tensor, Tensor]]:
    return lambda runner: runner.predict_rows(theta, first, last)
