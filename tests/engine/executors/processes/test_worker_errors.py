"""Errors that cannot be pickled arrive from a worker as readable errors, and the worker continues."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssfl.algorithms.base import ClientContext
from ssfl.engine.client.errors import ClientError
from ssfl.engine.executors.processes.executor import ProcessExecutor
from ssfl.engine.executors.processes.worker import RemoteError, sendable
from tests.support.executor_cases import check_echoes, echo_jobs, runner_of
from tests.support.faults import VICTIM, echo


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self, client: int) -> None:
        super().__init__(f"client {client}: the lock is held")
        self.lock = threading.Lock()


class TwoWordsError(Exception):
    """Can be pickled but not unpickled: it stores one argument, but its constructor needs two."""

    def __init__(self, client: int, what: str) -> None:
        super().__init__(f"client {client}: {what}")


def locked(context: ClientContext) -> None:
    if context.client == VICTIM:
        raise LockedError(context.client)


def two_words(context: ClientContext) -> None:
    if context.client == VICTIM:
        raise TwoWordsError(context.client, "no such file")


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    warnings: list[str] = []
    tasks = {"echo": echo(), "locked": echo(locked), "two": echo(two_words)}
    made = ProcessExecutor(runner_of(tasks), 1, warnings.append)
    yield made
    made.close()
    assert warnings == []  # no worker died


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="workers need Linux")
@pytest.mark.parametrize(
    ("phase", "text"),
    [
        ("locked", f"LockedError: client {VICTIM}: the lock is held"),
        ("two", f"TwoWordsError: client {VICTIM}: no such file"),
    ],
)
def test_it_arrives_as_a_readable_error_and_the_worker_lives(
    phase: str, text: str, executor: ProcessExecutor
) -> None:
    (worker,) = executor._workers
    with pytest.raises(ClientError) as caught:
        list(executor.run(echo_jobs(phase, range(4))))
    assert str(caught.value) == f"client {VICTIM}, phase {phase}, round 1: {text}"
    check_echoes(list(executor.run(echo_jobs("echo", range(4)))), range(4))
    assert executor._workers == [worker]


def test_what_cannot_cross_becomes_readable() -> None:
    assert str(sendable(LockedError(3))) == "LockedError: client 3: the lock is held"
    assert isinstance(sendable(TwoWordsError(3, "gone")), RemoteError)


def test_what_can_cross_is_left_as_it_is() -> None:
    error = ValueError("client 3: bad data")
    assert sendable(error) is error
