"""Cells as processes of this machine: started, tied to their share of the cores, read, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

CLEAN_END_SECONDS = 5.0
"""How long an interrupted cell may take to write its last checkpoint."""


@final
class Local:
    """Processes on this machine; with several at a time each keeps to its own share of the cores.

    Without that, every cell would choose its workers and threads as if it were alone, and all would wait for each
    other.
    """

    here = True

    def __init__(self, jobs: int) -> None:
        self._places: list[_Child | None] = [None] * jobs

    def start(self, command: Sequence[str], log: Path) -> _Child:
        """Start a process in the first free place."""
        place = next(
            (i for i, child in enumerate(self._places) if child is None or child.done()), len(self._places)
        )
        self._places += [None] * (place + 1 - len(self._places))
        child = _Child(command, log)
        self._places[place] = child
        _keep_to(child.pid, place, len(self._places))
        return child

    def stop(self) -> None:
        """Ctrl-C reaches children by itself (same terminal): give them time, tell them again, then kill."""
        running = [child for child in self._places if child is not None and not child.done()]
        for number in (None, signal.SIGINT, signal.SIGKILL):
            for child in running:
                if number is not None:
                    child.send(number)
            until = time.monotonic() + CLEAN_END_SECONDS
            while running and time.monotonic() < until:
                running = [child for child in running if not child.done()]
                time.sleep(0.02)


@final
class _Child:
    """A process of this machine."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as copy:
            self._process = subprocess.Popen(
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
    """Tie a process to its share of the cores, where the system can (Linux) and cells would meet."""
    if places == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[place::places] or [cores[place % len(cores)]]
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.sched_setaffinity(pid, share)


def run_command(command: Sequence[str], log: str, folder: str) -> int:
    """What a node of a cluster runs: the command to its end, in `folder`, its words to `log`; gives the exit code.

    A cancelled task (Ray raises KeyboardInterrupt in it) gives the cell time for its last checkpoint.
    """
    with Path(log).open("ab") as copy:
        process = subprocess.Popen(command, cwd=folder, stdout=copy, stderr=subprocess.STDOUT)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(CLEAN_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@final
class Tail:
    """What a file has gained since the last look, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._half = b""

    def lines(self) -> Iterator[str]:
        """New lines, without their ends."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                gained = file.read()
        except OSError:  # not written yet, or a network file system that lags
            return
        self._position += len(gained)
        *whole, self._half = (self._half + gained).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
