"""A short measurement of one training step in every form that the executors offer, on this machine, for this model."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout
from ssfl.core.net import Batch
from ssfl.engine.arithmetic import channels_last
from ssfl.engine.batched import UnbatchableError, check_batchable
from ssfl.engine.block_net import BlockNet
from ssfl.engine.flat_module import FlatModule
from ssfl.engine.native_layers import native_layers
from ssfl.engine.threads import UnthreadableError, check_threadable
from ssfl.native.winograd import serves

Kernels = Callable[[nn.Module], contextlib.AbstractContextManager[None]]
"""The context in which a network computes with the kernels, or without."""
STEPS = 10
SECONDS = 1.5
"""Each form is timed for so many steps, or until so many seconds have passed."""
TRIES = 3
"""Threads are timed so many times; the quickest try counts, of it the median step."""
THREADS_BYTES = 4 << 30
"""Threads are not tried where their networks, gradients and copies would take more."""
BATCHED_PARAMETERS = 300_000
"""Above this size a block of clients was never faster than one after the other (docs/performance.md)."""


class Form(NamedTuple):
    """How images lie and 3x3 convolutions are computed, in the words of the configuration."""

    memory_format: str
    convolutions: str

    def kernels(self, native: bool) -> Kernels:
        """The context in which a network computes in this form."""
        mixed, winograd = self.memory_format == "mixed", self.convolutions == "winograd"
        return partial(native_layers, wanted=native, mixed=mixed, winograd=winograd)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one client's step (forward, backward) on one thread, the quickest of a few."""

    contiguous: float
    channels_last: float | None
    """None where inputs are no images."""
    batched: float | None
    """Seconds a client and step in a block; None where a block cannot or need not be tried."""
    block: int
    threaded: float | None = None
    """Seconds of a step while `workers` threads each compute one; None where that cannot or need not be tried."""
    workers: int = 1
    mixed: float | None = None
    """Channels last but for small maps; None without kernels."""
    winograd: float | None = None
    """Channels last and 3x3 convolutions by minimal filtering; None where the kernels serve none."""

    @property
    def best_alone(self) -> float:
        """The fastest form's step."""
        return min(self._alone().values())

    def alone(self, form: Form) -> float:
        """The step of a form; of one that was not timed, the slowest's."""
        times = self._alone()
        return times.get(form, max(times.values()))

    def _alone(self) -> dict[Form, float]:
        times = {
            Form("contiguous", "direct"): self.contiguous,
            Form("channels_last", "direct"): self.channels_last,
            Form("mixed", "direct"): self.mixed,
            Form("channels_last", "winograd"): self.winograd,
        }
        return {form: seconds for form, seconds in times.items() if seconds is not None}

    def form(self, memory_format: str = "auto", convolutions: str = "auto") -> Form:
        """The fastest of the forms asked for; each must win by 3 % over the plainer ones to be taken."""
        chosen, best = None, math.inf
        for form, seconds in self._alone().items():
            asked = memory_format in ("auto", form.memory_format) and convolutions in (
                "auto",
                form.convolutions,
            )
            if asked and (chosen is None or seconds < 0.97 * best):
                chosen, best = form, seconds
        if chosen is None:  # asked for and not timed
            return Form("contiguous" if memory_format == "auto" else memory_format, "direct")
        return chosen


def time_steps(
    module: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    block: int,
    workers: int = 1,
    native: bool = False,
) -> StepTimes:
    """Measure on random data and a copy of the module; global random state and the module stay as they are.

    input_shape: one example's. block: clients trained at once, below 2 for none; workers: threads, below 2 for none.
    native: with the kernels of `ssfl.native`.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *input_shape, generator=generator)
    copied = copy.deepcopy(module).train()
    layout = Layout.of(copied)
    with torch.no_grad():
        classes = copied.eval()(x[:1]).shape[1]
    copied.train()
    y = torch.randint(classes, (batch_size,), generator=generator)
    last = mixed = winograd = None
    with torch.random.fork_rng(devices=[]):
        contiguous = _alone_seconds(copied, layout, (x, y), Form("contiguous", "direct").kernels(native))
        if x.dim() == 4:
            seconds = partial(_alone_seconds, copied, layout, (channels_last(x), y))
            last = seconds(Form("channels_last", "direct").kernels(native))
            if native:
                mixed = seconds(Form("mixed", "direct").kernels(native))
            if native and any(map(serves, copied.modules())):
                winograd = seconds(Form("channels_last", "winograd").kernels(native))
        together = _block_seconds(copied, layout, (x, y), block, native)
        alone = StepTimes(contiguous, last, together, block, mixed=mixed, winograd=winograd)
        form = alone.form()
        if form.memory_format != "contiguous":
            x = channels_last(x)
        threaded = _threads_seconds(module, layout, (x, y), workers, form.kernels(native))
    return replace(alone, threaded=threaded, workers=workers)


def _step(flat: FlatModule, batch: Batch) -> None:
    torch.autograd.backward(cross_entropy(flat.module(batch[0]), batch[1]))
    flat.take_gradient()


def _alone_seconds(module: nn.Module, layout: Layout, batch: Batch, kernels: Kernels) -> float:
    flat = FlatModule(module, layout)
    with kernels(module):
        return _quickest_seconds(lambda: _step(flat, batch))


def _block_seconds(module: nn.Module, layout: Layout, batch: Batch, block: int, native: bool) -> float | None:
    if block < 2 or layout.size > BATCHED_PARAMETERS or layout.trained_size < layout.size:
        return None
    try:
        check_batchable(module)
    except UnbatchableError:
        return None
    net = BlockNet(module, layout, native=native)
    theta = layout.flatten(module).expand(block, -1).contiguous()
    together = tuple(t.unsqueeze(1).expand(t.shape[0], block, *t.shape[1:]).contiguous() for t in batch)
    try:
        return _quickest_seconds(lambda: net.losses_and_gradient(theta, (together[0], together[1]))) / block
    except RuntimeError:  # an operation without a batching rule: such a network trains alone
        return None


def _threads_seconds(
    module: nn.Module, layout: Layout, batch: Batch, workers: int, kernels: Kernels
) -> float | None:
    """Seconds of a step beside those of the other threads: what they lose to Python's lock is in it."""
    if workers < 2 or 16 * layout.size * workers > THREADS_BYTES:
        return None
    try:
        check_threadable(module, tuple(batch[0].shape[1:]))
    except UnthreadableError:
        return None
    together = threading.Barrier(workers)
    seconds: list[list[float]] = [[] for _ in range(TRIES)]

    def work() -> None:
        try:
            flat = FlatModule(copy.deepcopy(module).train(), layout)
            with kernels(flat.module):
                _step(flat, batch)
                for attempt in seconds:
                    together.wait()
                    attempt.extend(_timings(lambda: _step(flat, batch)))
        except BaseException:
            together.abort()  # or the others would wait for this one for ever
            raise

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tasks = [pool.submit(work) for _ in range(workers)]
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])
    return min(map(statistics.median, seconds))


def _quickest_seconds(step: Callable[[], object]) -> float:
    """Other programs only ever add to a step's time."""
    step()
    return min(_timings(step))


def _timings(step: Callable[[], object]) -> Iterator[float]:
    begun = time.perf_counter()
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        yield time.perf_counter() - start
        if time.perf_counter() - begun > SECONDS:
            return
