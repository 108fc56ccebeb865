"""The loop of one rank, built from a run's setup; all ranks start or continue in the same way."""

from __future__ import annotations

import contextlib
import copy
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ssfl.assemble.build import RunSetup
from ssfl.assemble.execution import executor_of, runner_of
from ssfl.config import Config
from ssfl.engine.accounting.ledger import ClientLink
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.errors import EngineError
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.executors.distributed.link import Link, first_decides
from ssfl.engine.executors.executor import Executor
from ssfl.engine.loop import Emit, RoundLoop, Save
from ssfl.engine.simulator import Absence, SeededAbsence, Simulator, all_answer
from ssfl.engine.state.checkpoint import COMMON_RECORDS
from ssfl.engine.state.client_store import ClientStore
from ssfl.engine.state.progress import Progress

INTERRUPTED = 130
FAILED = 1
STOPPED_BY_TORCHRUN = "interrupted: by Ctrl-C, or by torchrun because another rank ended"


def loop_of(setup: RunSetup, simulator: Simulator, executor: Executor, emit: Emit, save: Save) -> RoundLoop:
    """The run's loop over one executor."""
    return RoundLoop(
        algorithm=setup.algorithm,
        context=setup.context,
        exchange=CodedExchange(simulator, setup.wire),
        examiner=central_test_of(setup, executor),
        emit=emit,
        save=save,
        test_every=setup.config.training.frequency_of_the_test,
        link=link_of(setup.config),
    )


def central_test_of(setup: RunSetup, executor: Executor) -> CentralTest:
    """Tests by this process, with the configured metrics."""
    if setup.config.tracking.metrics == "accuracy":
        return CentralTest(executor, setup.federation)
    # A copy of the network: an executor requires that only it changes its network's flat memory.
    apart = runner_of(replace(setup, module=copy.deepcopy(setup.module)))
    return CentralTest(executor, setup.federation, apart.probabilities)


def link_of(config: Config) -> ClientLink | None:
    """Every client's link, or None if none is configured."""
    asked = config.communication
    return ClientLink(asked.link_mbits, asked.link_round_trip_ms) if asked.link_mbits else None


def simulator_of(setup: RunSetup, executor: Executor, store: ClientStore | None = None) -> Simulator:
    """The exchange of one rank, as configured."""
    measured = setup.config.communication.measure == "exact"
    return Simulator(executor, measured, store, absence_of(setup.config))


def absence_of(config: Config) -> Absence:
    """Which clients do not answer: `training.missing_replies` of each exchange, drawn from the seed."""
    share = config.training.missing_replies
    return SeededAbsence(config.experiment.seed, share) if share else all_answer


def first_progress(loop: RoundLoop, setup: RunSetup, saved: Progress | None, link: Link) -> Progress:
    """The first rank's checkpoint, or its start without one; every rank gets the same bits.

    `saved` is used on the first rank only; the others need no access to its folder.
    """
    progress = saved
    if not first_decides(link, lambda: saved is not None):
        progress = loop.start(setup.theta, setup.config.training.comm_round)
    agreed = first_decides(link, lambda: progress, (*COMMON_RECORDS, *setup.algorithm.records))
    assert agreed is not None
    return agreed


def follow(setup: RunSetup, link: Link) -> int:
    """A rank other than the first: computes its share of every round and writes nothing. Returns its exit code."""
    executor = executor_of(setup, link)
    simulator = simulator_of(setup, executor)
    loop = loop_of(setup, simulator, executor, _ignore, lambda progress: 0.0)
    try:
        progress = first_progress(loop, setup, None, link)
        loop.exchange.restore(progress.client_memories)
        loop.run(progress)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EngineError as error:
        with undisturbed():
            print(f"ssfl: rank {link.rank}: {error}", file=sys.stderr)
        return FAILED
    finally:
        executor.close()
    return 0


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Context in which the last checkpoint is written: a second Ctrl-C, or torchrun, which ends all ranks when one has
    ended, does not interrupt it. In other threads than the main one, which get no signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ignore(event: Mapping[str, Any]) -> None:
    """The first rank records it."""
