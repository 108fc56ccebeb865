"""What each executor would take for a run, from a short measurement on this machine that is cached and told."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ssfl.assemble.build import Parts
from ssfl.assemble.folder import processor
from ssfl.config import Config
from ssfl.engine.calibrate import Form, StepTimes, time_steps
from ssfl.engine.checkpoint import write_atomically

WORKER_START_SECONDS = 4.0
"""What starting worker processes costs, mostly `import torch`."""
TOGETHER = 1.1
"""A step in one of several busy processes against one alone: they share caches and memory (docs/performance.md)."""


def estimated_seconds(
    config: Config, parts: Parts, times: StepTimes, form: Form, workers: int, cohort: int
) -> dict[str, float]:
    """Seconds of the whole run with `cohort` clients a round, by executor; a client alone computes in that form.

    A forward pass, which is all that an evaluation needs, counts a third of a step.
    """
    training = config.training
    mean_examples = sum(parts.context.example_counts.values()) / max(len(parts.context.example_counts), 1)
    rounds = training.comm_round
    steps = training.epochs * -(-mean_examples // training.batch_size) * cohort * rounds
    tests = 1 + -(-rounds // training.frequency_of_the_test)
    alone = tests * len(parts.federation.arrays.test_y) / training.batch_size / 3
    alone += sum(
        parts.federation.num_clients for t in parts.algorithm.tasks.values() if t.probe and not t.fit
    )
    step = times.alone(form)
    alone *= step
    waves = -(-cohort // workers) / cohort
    estimates = {"sequential": steps * step + alone}
    compiled = config.engine.compile  # by one network in a process
    if workers > 1:
        shared = WORKER_START_SECONDS + alone / workers
        estimates["processes"] = shared + steps * step * waves * TOGETHER
    if times.threaded is not None and not compiled:
        threaded = times.threaded * step / times.best_alone  # they were timed in the fastest form
        estimates["threads"] = (steps * waves + alone / step / workers) * threaded
    if times.batched is not None and not config.engine.compaction and not compiled:
        estimates["batched"] = steps * times.batched + alone
        if workers > 1:
            estimates["blocks in processes"] = shared + steps * times.batched * waves * TOGETHER
    return estimates


def measured(parts: Parts, batch_size: int, block: int, workers: int, native: bool = False) -> StepTimes:
    """Step times of this model on this machine, from the cache or measured now and told."""
    path = _cache_path(parts, batch_size, block, workers, native)
    if path.is_file():
        try:
            return StepTimes(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError):
            path.unlink(missing_ok=True)
    times = time_steps(parts.module, parts.federation.input_shape, batch_size, block, workers, native)
    _tell(times)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(times)).encode())
    except OSError as error:
        print(f"the measurement is not cached ({error}); the next run measures again", file=sys.stderr)
    return times


def _cache_path(parts: Parts, batch_size: int, block: int, workers: int, native: bool) -> Path:
    key = [
        processor(),
        os.cpu_count(),
        torch.__version__,
        parts.config.model.name,
        parts.layout.digest.hex(),
        list(parts.federation.input_shape),
        batch_size,
        block,
        workers,
        native,
    ]
    name = hashlib.blake2b(json.dumps(key).encode(), digest_size=12).hexdigest()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ssfl" / "calibration" / f"{name}.json"


def _tell(times: StepTimes) -> None:
    forms = {
        "contiguous": times.contiguous,
        "channels_last": times.channels_last,
        "mixed": times.mixed,
        "winograd": times.winograd,
        f"block of {times.block}": times.batched,
        f"{times.workers} threads": times.threaded,
    }
    told = ", ".join(f"{name} {1e3 * s:.2f}" for name, s in forms.items() if s is not None)
    print(f"measured once on this machine, ms a client's step: {told}", file=sys.stderr)
