"""The table of executors: how each is built, which networks it does not support, and its estimated time.

Properties that do not depend on the network are in `ssfl.config.engine.EXECUTORS`, which validation uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from ssfl.assemble.build import RunSetup
from ssfl.config import EngineConfig
from ssfl.config.engine import EXECUTORS, in_blocks
from ssfl.config.schema import ExecutorName
from ssfl.engine.client.data_source import input_dtype
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.example_rules import example_rules
from ssfl.engine.executors.batched.batchable import (
    UnbatchableError,
    check_batchable,
    check_lone_examples,
    check_losses,
)
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor, UnsendableError, check_sendable
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.step_times import Form, StepTimes
from ssfl.engine.executors.task_trial import first_works, needs_works
from ssfl.engine.executors.threads import ThreadExecutor, UnthreadableError, check_threadable
from ssfl.errors import UserError

WORKER_START_SECONDS = 4.0
"""Time to start the worker processes, mostly `import torch`."""
BUSY_FACTOR = 1.1
"""Slowdown of a step when several processes compute: they share caches and memory (docs/performance.md)."""


@final
@dataclass(frozen=True)
class Workload:
    """The work of a run, in training steps of one client (forward and backward), and the time of a step."""

    training_steps: float
    """Training steps of all clients in all rounds."""
    other_steps: float
    """Evaluation and scoring, as an equivalent number of training steps."""
    cohort: int
    """Clients per round."""
    workers: int
    times: StepTimes
    form: Form
    """How a single client is computed."""

    @property
    def step_seconds(self) -> float:
        """Time of one step of a single client."""
        return self.times.alone(self.form)

    @property
    def busiest_share(self) -> float:
        """Share of a round's steps that the worker with the most clients computes."""
        return math.ceil(self.cohort / self.workers) / self.cohort

    @property
    def other_seconds(self) -> float:
        """Time of evaluation and scoring on one worker."""
        return self.other_steps * self.step_seconds

    @property
    def one_thread_seconds(self) -> float:
        """Time of the whole run, one client after another."""
        return self.training_steps * self.step_seconds + self.other_seconds


Seconds = Callable[[Workload], float | None]
"""Workload -> seconds of the whole run; None if this executor offers no gain or was not timed."""


@final
@dataclass(frozen=True)
class ExecutorRow:
    """One executor."""

    build: Callable[[ClientRunner, EngineConfig], Executor]
    unsupported: Callable[[RunSetup, bool], str]
    """Why it does not support a run's network (True: in blocks of clients); empty if it does."""
    seconds: Seconds
    """Estimate if clients are computed one by one."""
    block_seconds: Seconds
    """Estimate if clients are computed in blocks."""


class Estimate(NamedTuple):
    """One way to compute a run."""

    executor: ExecutorName
    in_blocks: bool
    seconds: float


def estimates(load: Workload, engine: EngineConfig) -> Iterator[Estimate]:
    """Estimates of all executors that the settings allow and that were timed."""
    blocks = not (engine.compile or engine.compaction)
    for name, row in ROWS.items():
        if engine.executor not in ("auto", name) or (engine.compile and not EXECUTORS[name].compiled):
            continue
        alone = None if in_blocks(engine) else row.seconds(load)
        together = row.block_seconds(load) if blocks and engine.block != 1 else None
        if alone is not None:
            yield Estimate(name, False, alone)
        if together is not None:
            yield Estimate(name, True, together)


def _supported(setup: RunSetup, together: bool) -> str:
    return ""


def _unbatchable(setup: RunSetup, together: bool) -> str:
    source, dtype, tasks = setup.federation, input_dtype(setup.federation), setup.algorithm.tasks
    try:
        check_batchable(setup.module, source.input_shape, dtype)
        check_lone_examples(
            example_rules(setup.module, source.input_shape, dtype),
            map(source.examples, range(source.num_clients)),
            tasks,
        )
        if needs_works(tasks, setup.module):
            rounds = setup.config.training.comm_round
            works = first_works(setup.algorithm, setup.theta, setup.context, rounds)
            check_losses(setup.module, source.input_shape, dtype, tasks, works)
    except UnbatchableError as error:
        return _reason(error)
    return ""


def _unthreadable(setup: RunSetup, together: bool) -> str:
    try:
        check_threadable(setup.module, setup.federation.input_shape, input_dtype(setup.federation))
    except UnthreadableError as error:
        return _reason(error)
    return ""


def _unprocessable(setup: RunSetup, together: bool) -> str:
    try:
        check_sendable(setup.module)
    except UnsendableError as error:
        return _reason(error)
    return _unbatchable(setup, together) if together else ""


def _reason(error: UserError) -> str:
    """The message without its leading key and value, which the caller adds."""
    return str(error).partition(": ")[2]


def _never(load: Workload) -> None:
    return None


def _sequential_seconds(load: Workload) -> float:
    return load.one_thread_seconds


def _thread_seconds(load: Workload) -> float | None:
    times = load.times
    if times.threaded is None:
        return None
    step = times.threaded * load.step_seconds / times.best_alone  # threads were timed in the fastest form
    return (load.training_steps * load.busiest_share + load.other_steps / load.workers) * step


def _block_seconds(load: Workload) -> float | None:
    step = load.times.batched
    return None if step is None else load.training_steps * step + load.other_seconds


def _process_seconds(load: Workload) -> float | None:
    return _over_processes(load, load.step_seconds)


def _process_block_seconds(load: Workload) -> float | None:
    step = load.times.batched_in_worker
    return None if step is None else _over_processes(load, step)


def _over_processes(load: Workload, step: float) -> float | None:
    if load.workers < 2:
        return None
    busiest = load.training_steps * load.busiest_share * step * BUSY_FACTOR
    return WORKER_START_SECONDS + load.other_seconds / load.workers + busiest


ROWS: Mapping[ExecutorName, ExecutorRow] = {
    "sequential": ExecutorRow(
        lambda runner, engine: SequentialExecutor(runner), _supported, _sequential_seconds, _never
    ),
    "processes": ExecutorRow(
        lambda runner, engine: ProcessExecutor(runner, int(engine.workers), block=int(engine.block)),
        _unprocessable,
        _process_seconds,
        _process_block_seconds,
    ),
    "threads": ExecutorRow(
        lambda runner, engine: ThreadExecutor(runner, int(engine.workers)),
        _unthreadable,
        _thread_seconds,
        _never,
    ),
    "batched": ExecutorRow(
        lambda runner, engine: BatchedExecutor(runner, int(engine.block)),
        _unbatchable,
        _never,
        _block_seconds,
    ),
}
"""Simplest first; of two equal estimates the first is chosen."""
