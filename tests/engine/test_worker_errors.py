"""Errors that cannot cross from a worker as they are arrive as readable ones, and the worker goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssfl.algorithms.base import ClientContext
from ssfl.engine.processes import ProcessExecutor
from ssfl.engine.worker import RemoteError, sendable
from tests.engine.executors import check_echoes, echo_jobs, runner_of
from tests.engine.faults import VICTIM, Echo


class LockedError(Exception):
    """Cannot be pickled."""

    def __init__(self, client: int) -> None:
        super().__init__(f"client {client}: the lock is held")
        self.lock = threading.Lock()


class TwoWordsError(Exception):
    """Can be pickled, and not read again: it keeps one argument and is made from two."""

    def __init__(self, client: int, what: str) -> None:
        super().__init__(f"client {client}: {what}")


@dataclass(frozen=True)
class Locked(Echo):
    def happen(self, context: ClientContext) -> None:
        if context.client == VICTIM:
            raise LockedError(context.client)


@dataclass(frozen=True)
class TwoWords(Echo):
    def happen(self, context: ClientContext) -> None:
        if context.client == VICTIM:
            raise TwoWordsError(context.client, "no such file")


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    said: list[str] = []
    made = ProcessExecutor(runner_of({"echo": Echo(), "locked": Locked(), "two": TwoWords()}), 1, said.append)
    yield made
    made.close()
    assert said == []  # no worker died


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
    with pytest.raises(RemoteError) as caught:
        list(executor.run(echo_jobs(phase, range(4))))
    assert str(caught.value) == text
    check_echoes(list(executor.run(echo_jobs("echo", range(4)))), range(4))
    assert executor._workers == [worker]


def test_what_can_cross_is_left_as_it_is() -> None:
    error = ValueError("client 3: bad data")
    assert sendable(error) is error
