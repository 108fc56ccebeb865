"""A short measurement of one training step of a model on this machine, in every form that the executors support."""

from __future__ import annotations

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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout
from ssfl.core.net import Batch
from ssfl.engine.compute.arithmetic import channels_last
from ssfl.engine.compute.example_rules import made_up
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.compute.fused_layers import native_layers
from ssfl.engine.executors.batched.batchable import UnbatchableError, check_batchable
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.threads import UnthreadableError, check_threadable
from ssfl.engine.executors.trial import Kernels, errors_in_one_line
from ssfl.native.winograd import serves

STEPS = 10
SECONDS = 1.5
"""Each form is timed for this many steps, or until this many seconds have passed."""
TRIES = 3
"""Threads are timed this many times; the result is the median step of the fastest try."""
THREADS_BYTES = 4 << 30
"""Threads are not tried if their networks, gradients and copies would need more memory."""
BATCHED_PARAMETERS = 300_000
"""Above this size a block of clients was never faster than single clients (docs/performance.md)."""


class Form(NamedTuple):
    """Memory format of images and method of 3x3 convolutions, with the configuration's values."""

    memory_format: str
    convolutions: str

    def kernels(self, native: bool) -> Kernels:
        """The context in which a network computes in this form."""
        mixed, winograd = self.memory_format == "mixed", self.convolutions == "winograd"
        return partial(native_layers, wanted=native, mixed=mixed, winograd=winograd)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one client's step (forward, backward) on one thread; the fastest of a few."""

    contiguous: float
    channels_last: float | None
    """None if inputs are not images."""
    batched: float | None
    """Seconds per client and step in a block; None if a block cannot or need not be tried."""
    block: int
    threaded: float | None = None
    """Seconds of a step while `workers` threads each compute one; None if that cannot or need not be tried."""
    workers: int = 1
    mixed: float | None = None
    """Channels last except for small maps; None without kernels."""
    winograd: float | None = None
    """Channels last and 3x3 Winograd convolutions; None if the kernels support none."""
    plain: float | None = None
    """The faster memory format without kernels; None if the other times are also without kernels."""

    @property
    def kernels_pay(self) -> bool:
        """Whether the kernels are at least as fast as PyTorch's own layers, alone or in blocks."""
        return self.plain is None or min(self.best_alone, self.batched or math.inf) <= self.plain

    @property
    def best_alone(self) -> float:
        """The step time of the fastest form."""
        return min(self._alone().values())

    def alone(self, form: Form) -> float:
        """The step time of a form; for one that was not timed, the slowest time."""
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
        """The fastest of the requested forms; a form must be 3 % faster than the simpler ones before it."""
        chosen, best = None, math.inf
        for form, seconds in self._alone().items():
            asked = memory_format in ("auto", form.memory_format) and convolutions in (
                "auto",
                form.convolutions,
            )
            if asked and (chosen is None or seconds < 0.97 * best):
                chosen, best = form, seconds
        if chosen is None:  # requested and not timed
            return Form("contiguous" if memory_format == "auto" else memory_format, "direct")
        return chosen


def time_steps(
    module: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    block: int,
    workers: int = 1,
    native: bool = False,
    dtype: torch.dtype | None = None,
) -> StepTimes:
    """Measure on random data and a copy of the module; global random state and the module do not change.

    A form in which the network fails has no time. Raises UntrainableError if the network fails with plain tensors.
    input_shape: of one example; dtype: its type if it is not a float. block: clients trained at once; below 2: no
    blocks. workers: threads; below 2: none. native: use the kernels of `ssfl.native`.
    """
    copied = copy.deepcopy(module).train()
    layout = Layout.of(copied)
    x = made_up(copied, input_shape, batch_size, dtype)
    last = mixed = winograd = plain = None
    with torch.random.fork_rng(devices=[]):
        y = _labels(copied, x)
        with errors_in_one_line():
            contiguous = _alone_seconds(copied, layout, (x, y), Form("contiguous", "direct").kernels(native))
        if x.dim() == 4:
            seconds = partial(_seconds_if_possible, copied, layout, (channels_last(x), y))
            last = seconds(Form("channels_last", "direct").kernels(native))
            if native:
                mixed = seconds(Form("mixed", "direct").kernels(native))
            if native and any(map(serves, copied.modules())):
                winograd = seconds(Form("channels_last", "winograd").kernels(native))
        if native:
            plain = _plain_seconds(copied, layout, (x, y))
        together = _block_seconds(copied, layout, (x, y), block, native)
        alone = StepTimes(contiguous, last, together, block, mixed=mixed, winograd=winograd, plain=plain)
        form = alone.form()
        if form.memory_format != "contiguous":
            x = channels_last(x)
        threaded = _threads_seconds(module, layout, (x, y), workers, form.kernels(native))
    return replace(alone, threaded=threaded, workers=workers)


def _labels(module: nn.Module, x: Tensor) -> Tensor:
    """A random label for each example of x, from the classes of the network's output."""
    with errors_in_one_line(), torch.no_grad():
        classes = module.eval()(x.clone()).shape[1]
    module.train()
    return torch.randint(classes, (len(x),), generator=torch.Generator().manual_seed(0))


def _step(flat: FlatModule, batch: Batch) -> None:
    x = batch[0].clone()  # a network may change its input in place
    torch.autograd.backward(cross_entropy(flat.module(x), batch[1]))
    flat.take_gradient()


def _seconds_if_possible(module: nn.Module, layout: Layout, batch: Batch, kernels: Kernels) -> float | None:
    """None if the network fails in this form (`view` of images with channels last)."""
    try:
        return _alone_seconds(module, layout, batch, kernels)
    except Exception:  # a network's code may raise any error
        return None


def _alone_seconds(module: nn.Module, layout: Layout, batch: Batch, kernels: Kernels) -> float:
    flat = FlatModule(module, layout)
    with kernels(module):
        return _quickest_seconds(lambda: _step(flat, batch))


def _plain_seconds(module: nn.Module, layout: Layout, batch: Batch) -> float:
    x, y = batch
    kernels = Form("contiguous", "direct").kernels(native=False)
    formats = [x, channels_last(x)] if x.dim() == 4 else [x]
    found = [_seconds_if_possible(module, layout, (images, y), kernels) for images in formats]
    return min((seconds for seconds in found if seconds is not None), default=math.inf)


def _block_seconds(module: nn.Module, layout: Layout, batch: Batch, block: int, native: bool) -> float | None:
    if block < 2 or layout.size > BATCHED_PARAMETERS or layout.trained_size < layout.size:
        return None
    try:
        check_batchable(module, tuple(batch[0].shape[1:]), _whole_type(batch[0]))
    except UnbatchableError:
        return None
    net = BlockNet(module, layout, native=native)
    theta = layout.flatten(module).expand(block, -1).contiguous()
    together = tuple(t.unsqueeze(1).expand(t.shape[0], block, *t.shape[1:]).contiguous() for t in batch)
    try:
        return (
            _quickest_seconds(lambda: net.losses_and_gradient(theta, (together[0].clone(), together[1])))
            / block
        )
    except Exception:  # an operation without a batching rule: no blocks for this network
        return None


def _whole_type(x: Tensor) -> torch.dtype | None:
    return None if x.is_floating_point() else x.dtype


def _threads_seconds(
    module: nn.Module, layout: Layout, batch: Batch, workers: int, kernels: Kernels
) -> float | None:
    """Seconds of a step while other threads compute, including the wait for Python's lock."""
    if workers < 2 or 16 * layout.size * workers > THREADS_BYTES:
        return None
    try:
        check_threadable(module, tuple(batch[0].shape[1:]), _whole_type(batch[0]))
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
            together.abort()  # otherwise the other threads would wait forever
            raise

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tasks = [pool.submit(work) for _ in range(workers)]
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])
    return min(map(statistics.median, seconds))


def _quickest_seconds(step: Callable[[], object]) -> float:
    """Processor time of this thread, which computes the whole step; load on the machine does not distort it."""
    step()
    return min(_timings(step, time.thread_time))


def _timings(step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Iterator[float]:
    begun = time.perf_counter()
    for _ in range(STEPS):
        start = clock()
        step()
        yield clock() - start
        if time.perf_counter() - begun > SECONDS:
            return
