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

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.net import Batch
from ssfl.engine.compute.arithmetic import channels_last
from ssfl.engine.compute.example_rules import made_up
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.executors.batched.batchable import UnbatchableError, check_batchable
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.own_step import OwnStep, plain_block_step, plain_step
from ssfl.engine.executors.step_times import Form, StepTimes
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


def time_steps(
    module: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    block: int,
    workers: int = 1,
    native: bool = False,
    dtype: torch.dtype | None = None,
    own: OwnStep | None = None,
    worker_block: int = 0,
) -> StepTimes:
    """Measure on random data and a copy of the module; global random state and the module do not change.

    A form in which the network fails has no time. Raises UntrainableError if the network fails with plain tensors.
    input_shape: of one example; dtype: its type if it is not a float. block: clients trained at once; below 2: no
    blocks. worker_block: the same in each of several processes; 0: as `block`. workers: threads; below 2: none.
    native: use the kernels of `ssfl.native`. own: the method's own step; None: the cross-entropy of the network itself.
    """
    layout = Layout.of(module)
    with errors_in_one_line():
        copied = (copy.deepcopy(module) if own is None else own.prepared(module)).train()
    x = made_up(module, input_shape, batch_size, dtype)
    last = mixed = winograd = plain = None
    with torch.random.fork_rng(devices=[]):
        y = _labels(copied, x)
        timed = _Timed(copied, layout, own)
        with errors_in_one_line():
            contiguous = timed.alone((x, y), Form("contiguous", "direct").kernels(native))
        if x.dim() == 4:
            seconds = partial(timed.alone_if_possible, (channels_last(x), y))
            last = seconds(Form("channels_last", "direct").kernels(native))
            if native:
                mixed = seconds(Form("mixed", "direct").kernels(native))
            if native and any(map(serves, module.modules())):
                winograd = seconds(Form("channels_last", "winograd").kernels(native))
        if native:
            plain = timed.plain((x, y))
        together = in_worker = timed.in_block(module, (x, y), block, native)
        if together is not None and worker_block not in (0, block):
            in_worker = timed.in_block(module, (x, y), worker_block, native)
        alone = StepTimes(
            contiguous,
            last,
            together,
            block,
            mixed=mixed,
            winograd=winograd,
            batched_in_worker=in_worker,
            plain=plain,
        )
        form = alone.form()
        if form.memory_format != "contiguous":
            x = channels_last(x)
        threaded = timed.on_threads(module, (x, y), workers, form.kernels(native))
    return replace(alone, threaded=threaded, workers=workers)


def _labels(module: nn.Module, x: Tensor) -> Tensor:
    """A random label for each example of x, from the classes of the network's output."""
    with errors_in_one_line(), torch.no_grad():
        classes = module.eval()(x.clone()).shape[1]
    module.train()
    return torch.randint(classes, (len(x),), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class _Timed:
    """The network that is timed, in train mode, and its step."""

    module: nn.Module
    layout: Layout
    own: OwnStep | None

    def _step(self, module: nn.Module, batch: Batch) -> Callable[[], object]:
        """One client's step on a network with flat memory."""
        flat = FlatModule(module, self.layout)
        if self.own is None:
            return plain_step(flat, batch)
        flat.load(self.own.start(module, self.layout))
        return self.own.alone(flat, batch)

    def alone(self, batch: Batch, kernels: Kernels) -> float:
        """Seconds of one client's step."""
        step = self._step(self.module, batch)
        with kernels(self.module):
            return _quickest_seconds(step)

    def alone_if_possible(self, batch: Batch, kernels: Kernels) -> float | None:
        """None if the network fails in this form (`view` of images with channels last)."""
        try:
            return self.alone(batch, kernels)
        except Exception:  # a network's code may raise any error
            return None

    def plain(self, batch: Batch) -> float:
        """Seconds without kernels, in the faster memory format."""
        x, y = batch
        kernels = Form("contiguous", "direct").kernels(native=False)
        formats = [x, channels_last(x)] if x.dim() == 4 else [x]
        found = [self.alone_if_possible((images, y), kernels) for images in formats]
        return min((seconds for seconds in found if seconds is not None), default=math.inf)

    def in_block(self, module: nn.Module, batch: Batch, block: int, native: bool) -> float | None:
        """Seconds per client in a block. module: the network without the task's layers."""
        layout = self.layout
        if block < 2 or layout.size > BATCHED_PARAMETERS or layout.trained_size < layout.size:
            return None
        try:
            check_batchable(module, tuple(batch[0].shape[1:]), _whole_type(batch[0]))
        except UnbatchableError:
            return None
        net = BlockNet(self.module, layout, native=native)
        start = layout.flatten(self.module) if self.own is None else self.own.start(self.module, layout)
        theta = start.expand(block, -1).contiguous()
        x, y = (t.unsqueeze(1).expand(t.shape[0], block, *t.shape[1:]).contiguous() for t in batch)
        compute = plain_block_step if self.own is None else self.own.together
        try:
            return _quickest_seconds(compute(net, theta, (x, y))) / block
        except Exception:  # an operation without a batching rule: no blocks for this network
            return None

    def on_threads(self, module: nn.Module, batch: Batch, workers: int, kernels: Kernels) -> float | None:
        """Seconds of a step while other threads compute, including the wait for Python's lock.

        module: the network without the task's layers.
        """
        if workers < 2 or 16 * self.layout.size * workers > THREADS_BYTES:
            return None
        try:
            check_threadable(module, tuple(batch[0].shape[1:]), _whole_type(batch[0]))
        except UnthreadableError:
            return None
        together = threading.Barrier(workers)
        seconds: list[list[float]] = [[] for _ in range(TRIES)]

        def work() -> None:
            try:
                own_module = copy.deepcopy(self.module)
                step = self._step(own_module, batch)
                with kernels(own_module):
                    step()
                    for attempt in seconds:
                        together.wait()
                        attempt.extend(_timings(step))
            except BaseException:
                together.abort()  # otherwise the other threads would wait forever
                raise

        _run_on_threads(work, workers)
        return min(map(statistics.median, seconds))


def _run_on_threads(work: Callable[[], None], workers: int) -> None:
    """Run `work` on each thread; raises the first error that is not a broken barrier."""
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tasks = [pool.submit(work) for _ in range(workers)]
    failed = [error for task in tasks if (error := task.exception()) is not None]
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])


def _whole_type(x: Tensor) -> torch.dtype | None:
    return None if x.is_floating_point() else x.dtype


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
