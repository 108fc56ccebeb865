"""The loop of one rank: made from a run's parts, begun or continued alike on every rank."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ssfl.assemble.build import Parts
from ssfl.assemble.execution import executor_of
from ssfl.engine.checkpoint import COMMON_RECORDS
from ssfl.engine.driver import Emit, Federation, Progress, Save, TestSet
from ssfl.engine.executors import Executor
from ssfl.engine.jobs import DivergedError
from ssfl.engine.processes import WorkerError
from ssfl.engine.ranks import Link, RankError, first_decides
from ssfl.engine.simulator import Simulator

INTERRUPTED = 130
FAILED = 1
STOPPED_BY_TORCHRUN = "interrupted: by Ctrl-C, or by torchrun because another rank ended"


def loop_of(parts: Parts, simulator: Simulator, executor: Executor, emit: Emit, save: Save) -> Federation:
    """The run's loop over one executor."""
    arrays = parts.federation.arrays
    return Federation(
        algorithm=parts.algorithm,
        context=parts.context,
        exchange=simulator,
        examiner=executor,
        test_set=TestSet(arrays.test_y, arrays.num_classes, parts.federation.test_parts),
        emit=emit,
        save=save,
        test_every=parts.config.training.frequency_of_the_test,
    )


def first_progress(loop: Federation, parts: Parts, saved: Progress | None, link: Link) -> Progress:
    """What to go on from: the first rank's checkpoint or its fresh start, bit for bit the same on every rank.

    `saved` counts on the first rank only; the others need no access to its folder.
    """
    progress = saved
    if not first_decides(link, lambda: saved is not None):
        progress = loop.start(parts.theta, parts.config.training.comm_round)
    told = first_decides(link, lambda: progress, (*COMMON_RECORDS, *parts.algorithm.records))
    assert told is not None
    return told


def follow(parts: Parts, link: Link) -> int:
    """A rank other than the first: computes its share of every round, writes and shows nothing; its exit code."""
    executor = executor_of(parts, link)
    simulator = Simulator(executor)
    loop = loop_of(parts, simulator, executor, _ignore, lambda progress: 0.0)
    try:
        progress = first_progress(loop, parts, None, link)
        simulator.restore(progress.client_states)
        loop.run(progress)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (DivergedError, WorkerError, RankError) as error:
        with undisturbed(link):
            print(f"ssfl: rank {link.rank}: {error}", file=sys.stderr)
        return FAILED
    finally:
        executor.close()
    return 0


@contextlib.contextmanager
def undisturbed(link: Link) -> Iterator[None]:
    """Let the last words and the last checkpoint be written: torchrun terminates all ranks when one has ended."""
    if link.size == 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ignore(event: Mapping[str, Any]) -> None:
    """The first rank records it."""
