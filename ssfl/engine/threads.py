"""Threads with a network each: the executor for a few cores, without a second process.

PyTorch leaves Python's lock while an operation computes and for the whole of a backward pass, so a few threads keep
as many cores busy; they share data, weights and libraries, and nothing is copied or pickled. Every thread computes
with one intra-op thread, and draws are named by client and round: the sequential executor's bits.
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
from ssfl.engine.jobs import Job, Outcome
from ssfl.engine.local import ClientRunner
from ssfl.engine.memory import give_back_freed_memory
from ssfl.engine.shares import in_order, longest_first, row_slices

AHEAD = 4
"""Jobs a thread that may be begun or done before the one whose outcome is wanted next: bounds what waits in memory."""
_Answer = TypeVar("_Answer")


class UnthreadableError(ValueError):
    """A network that draws in training: threads share PyTorch's one generator, so its draws would be a race."""


@final
class ThreadExecutor:
    """Jobs over `workers` threads; outcomes in the jobs' order, whoever computes them."""

    def __init__(self, runner: ClientRunner, workers: int) -> None:
        check_threadable(runner.module, runner.federation.input_shape)
        self.runner = runner
        self.workers = workers
        self._ended = threading.Event()
        self._free: SimpleQueue[ClientRunner] = SimpleQueue()
        copies = [copy.deepcopy(runner.module) for _ in range(workers - 1)]
        # One thread takes the given network, so that a large one exists once less.
        self._free.put(runner.heeding(self._heed))
        for module in copies:
            self._free.put(replace(runner, module=module, heed=self._heed))
        self._pool = ThreadPoolExecutor(
            workers, "client", initializer=_begin, initargs=(processors_of(workers),)
        )

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome a job, in the jobs' order; where clients train, the longest jobs start first."""
        numbers = longest_first(jobs, self.runner)
        return in_order(self._map([_work(jobs[i]) for i in numbers], numbers))

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The test set in slices of whole evaluation batches, one slice a thread."""
        slices = row_slices(len(self.runner.federation.arrays.test_y), self.workers)
        calls = [_rows(theta, first, last) for first, last in slices]
        answers = [answer for _, answer in self._map(calls, range(len(calls)))]
        return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])

    def close(self) -> None:
        """End the threads: each stops before its next minibatch. Harmless when repeated."""
        self._ended.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _map(
        self, calls: Sequence[Callable[[ClientRunner], _Answer]], names: Sequence[int]
    ) -> Iterator[tuple[int, _Answer]]:
        """(name, answer) of each call, begun and given in their order, `AHEAD` a thread at a time."""
        begun: deque[tuple[int, Future[_Answer]]] = deque()
        waiting = iter(zip(names, calls, strict=True))
        # Networks that draw are refused, yet every fit seeds the generator: one thread's state must not stay behind.
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
        finally:  # after an error, or where the outcomes are not wanted to the end
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

    def _heed(self) -> None:
        if self._ended.is_set():
            raise _EndedError


def processors_of(workers: int) -> SimpleQueue[int] | None:
    """A processor for every thread, where the threads are as many as the processors that this process may use.

    Threads that hand Python's lock to each other look idle to the scheduler, which then leaves them on one processor
    after a pause: a round of the small CNN took a quarter longer (docs/performance.md). Fewer threads than processors
    are left to the scheduler, or two runs side by side would take the same ones.
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
    """What a thread does first."""
    torch.set_num_threads(1)
    if places is not None:
        os.sched_setaffinity(0, {places.get()})  # of this thread alone


def check_threadable(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    """UnthreadableError if a forward pass in training moves PyTorch's generator (dropout, stochastic depth)."""
    trial = copy.deepcopy(module).train()
    first = next(iter(trial.parameters()), torch.zeros(()))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.default_generator.get_state()
        trial(torch.zeros((2, *input_shape), dtype=first.dtype, device=first.device))
        drawn = not torch.default_generator.get_state().equal(before)
    if drawn:
        raise UnthreadableError(
            "engine.executor=threads: a layer of this network draws at random in training, and threads share one "
            "generator; use engine.executor=sequential or processes"
        )


def _work(job: Job) -> Callable[[ClientRunner], Outcome]:
    return lambda runner: runner.run(job)


def _rows(theta: Tensor, first: int, last: int) -> Callable[[ClientRunner], tuple[Tensor, Tensor]]:
    return lambda runner: runner.predict_rows(theta, first, last)


class _EndedError(Exception):
    """The executor was closed while this thread computed."""
