"""The workload of a run, and the time of a training step on this machine: a short, cached measurement."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from ssfl.assemble.build import RunSetup
from ssfl.assemble.calibration_key import calibration_key
from ssfl.assemble.executors import Workload
from ssfl.assemble.machine_load import Moment, others_share
from ssfl.config import Config
from ssfl.engine.client.data_source import input_dtype
from ssfl.engine.executors.own_step import OwnStep
from ssfl.engine.executors.step_times import Form, StepTimes
from ssfl.engine.executors.task_trial import first_works
from ssfl.engine.executors.timing import time_steps
from ssfl.engine.state.typed import check_types
from ssfl.output import write_atomically

BUSY_SHARE = 0.15
"""If other processes use a larger share of processor time, a measurement is not trusted."""
ATTEMPTS = 3
BUSY = (
    "this machine is busy: the measurement that chose how to compute is not cached; a later run may choose"
    " differently and differ in the last bits (docs/engine.md)"
)


def workload(
    config: Config, setup: RunSetup, times: StepTimes, form: Form, workers: int, cohort: int
) -> Workload:
    """The run with `cohort` clients per round. A forward pass (evaluation) counts as a third of a step."""
    training, counts = config.training, setup.context.example_counts
    rounds = training.comm_round
    mean_examples = sum(counts.values()) / max(len(counts), 1)
    steps = training.epochs * -(-mean_examples // training.batch_size) * cohort * rounds
    tests = 1 + -(-rounds // training.frequency_of_the_test)
    others = tests * len(setup.federation.evaluation_labels) / training.batch_size / 3
    probed = [task for task in setup.algorithm.tasks.values() if task.probe and not task.fit]
    others += setup.federation.num_clients * len(probed)
    return Workload(steps, others, cohort, workers, times, form)


def measured(
    setup: RunSetup, batch_size: int, block: int, workers: int, native: bool = False, worker_block: int = 0
) -> StepTimes:
    """Step times of this model on this machine, from the cache or measured now; arguments as for `time_steps`.

    A measurement is cached only if the machine was not busy with other processes.
    """
    sizes = (batch_size, block, workers, native, worker_block)
    path = cache_folder() / f"{calibration_key(setup, *sizes)}.json"
    kept = _kept(path)
    if kept is not None:
        return kept
    times, calm = _measure(setup, *sizes)
    if not calm:
        print(BUSY, file=sys.stderr)
        return times
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(times)).encode())
        print(
            f"measured this machine once, to choose the fastest way to compute; details: {path}",
            file=sys.stderr,
        )
    except OSError as error:
        print(f"the measurement is not cached ({error}); the next run measures again", file=sys.stderr)
    return times


def _kept(path: Path) -> StepTimes | None:
    """The times in a cache file; None if there is no such file. An invalid file is removed."""
    try:
        times = StepTimes(**json.loads(path.read_bytes()))
        check_types(times)
        if not all(value is None or 0 < value < math.inf for value in asdict(times).values()):
            raise ValueError("not a positive, finite time")
    except OSError:
        return None
    except (ValueError, TypeError, RecursionError):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return times


def own_step(setup: RunSetup) -> OwnStep | None:
    """The training step of a method with its own layers or loss; None if it trains the network's cross-entropy."""
    tasks = setup.algorithm.tasks
    if not any(task.has_own_loss for task in tasks.values()):
        return OwnStep.of(tasks, {})
    rounds = setup.config.training.comm_round
    return OwnStep.of(tasks, first_works(setup.algorithm, setup.theta, setup.context, rounds))


def _measure(
    setup: RunSetup, batch_size: int, block: int, workers: int, native: bool, worker_block: int
) -> tuple[StepTimes, bool]:
    """Step times, and whether the machine was free of other load.

    On a busy machine the measurement is repeated until two in a row lead to the same arithmetic, and the time of
    threads is dropped. If no two agree, only the simplest form's time is returned: then bits depend on no measurement.
    """
    shape, dtype, own = setup.federation.input_shape, input_dtype(setup.federation), own_step(setup)
    before: StepTimes | None = None
    for _ in range(ATTEMPTS):
        since = Moment.now()
        times = time_steps(setup.module, shape, batch_size, block, workers, native, dtype, own, worker_block)
        if others_share(since, Moment.now()) < BUSY_SHARE:
            return times, True
        if before is not None and _arithmetic(before) == _arithmetic(times):
            return replace(times, threaded=None), False
        before = times
    return StepTimes(times.contiguous, None, None, block, workers=workers), False


def _arithmetic(times: StepTimes) -> tuple[Form, bool, bool]:
    """The choices that affect a run's bits: memory format and convolutions, kernels, blocks."""
    together = times.batched is not None and times.batched < times.best_alone
    return times.form(), times.kernels_pay(times.form()), together


def forget_measurements() -> int:
    """Remove all cached measurements; returns their number."""
    files = list(cache_folder().glob("*.json"))
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def cache_folder() -> Path:
    """The folder of cached measurements."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ssfl" / "calibration"
