"""Runs as processes of this machine, each pinned to its share of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from ssfl.sweep.launchers.lifeline import GRACE_SECONDS, start_bound

AGAIN_SECONDS = 5.0
"""Seconds after which an interrupted run is interrupted again; the first signal may have been lost."""


@final
class Local:
    """Processes on this machine; several at a time are pinned to separate shares of the cores.

    Otherwise every run would choose its workers and threads for the whole machine, and they would slow each other down.
    """

    here = True

    def __init__(self, jobs: int) -> None:
        self._slots: list[_Child | None] = [None] * jobs

    def start(self, command: Sequence[str], log: Path) -> _Child:
        """Start a process in the first free slot."""
        place = next(
            (i for i, child in enumerate(self._slots) if child is None or child.done()), len(self._slots)
        )
        self._slots += [None] * (place + 1 - len(self._slots))
        child = _Child(command, log)
        self._slots[place] = child
        _keep_to(child.pid, place, len(self._slots))
        return child

    def stop(self) -> None:
        """Ctrl-C reaches children directly (same terminal): wait, send SIGINT again, after GRACE_SECONDS SIGKILL."""
        running = [child for child in self._slots if child is not None and not child.done()]
        waits = ((None, AGAIN_SECONDS), (signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, AGAIN_SECONDS))
        for number, seconds in waits:
            for child in running:
                if number is not None:
                    child.send(number)
            until = time.monotonic() + seconds
            while running and time.monotonic() < until:
                running = [child for child in running if not child.done()]
                time.sleep(0.02)


@final
class _Child:
    """A process of this machine."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as copy:
            self._process = start_bound(
                command, stdin=subprocess.DEVNULL, stdout=copy, stderr=subprocess.STDOUT
            )
        self.pid = self._process.pid

    def done(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int:
        return self._process.wait()

    def send(self, number: int) -> None:
        self._process.send_signal(number)


def _keep_to(pid: int, place: int, places: int) -> None:
    """Pin a process to its share of the cores, on Linux and if there are several runs."""
    if places == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[place::places] or [cores[place % len(cores)]]
    with contextlib.suppress(ProcessLookupError):  # it has already ended
        os.sched_setaffinity(pid, share)


def run_command(command: Sequence[str], log: str, folder: str) -> int:
    """Run a command on a cluster node in `folder`, with its output in `log`. Returns the exit code.

    A cancelled task (Ray raises KeyboardInterrupt in it) gives the run time for its last checkpoint.
    """
    with Path(log).open("ab") as copy:
        process = start_bound(command, cwd=folder, stdout=copy, stderr=subprocess.STDOUT)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@final
class Tail:
    """Reads the complete lines that were appended to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._half = b""

    def lines(self) -> Iterator[str]:
        """New lines, without line ends."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                gained = file.read()
        except OSError:  # not written yet, or delayed by a network file system
            return
        self._position += len(gained)
        *whole, self._half = (self._half + gained).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
