"""Contestants side by side: each a long-lived child process, their rounds taken in turns (A B C A B C …).

Only one contestant works at a time. A turn is a burst of rounds one after the other, as in a run; the first of each is
counted apart, because it finds the processor's caches full of another's data. The very first rounds (imports, first
allocations) are left out, and so is a last one in which memory is sampled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks.machine import cpu_seconds, peak_memory_bytes, tree

ROOT = Path(__file__).resolve().parent.parent


class ContestantError(RuntimeError):
    """A contestant ended or stayed silent; holds the end of what it said."""


@dataclass(frozen=True)
class Contestant:
    """How to start one: `command` is completed by `--gate READ WRITE`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    patience_seconds: float = 300.0
    """For its setup and for each round."""


@dataclass
class Score:
    """What was measured of a contestant, turn by turn."""

    start_seconds: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    """Of the round that begins a burst; empty where turns are single rounds."""
    peak_bytes: float = float("nan")
    accuracy: float = float("nan")


class Seat:
    """A running contestant."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        inherited = (read_commands, write_answers)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **contestant.environment}
        command = [*contestant.command, "--gate", *map(str, inherited)]
        self._said = _unnamed_file()
        start = time.perf_counter()
        self.process = subprocess.Popen(
            *(command,),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            env=environment,
            cwd=ROOT,
        )
        for fd in inherited:
            os.close(fd)
        self._rest = b""
        try:
            self._hear()
        except BaseException:
            self.close()
            raise
        self.score = Score(time.perf_counter() - start)

    def round(self) -> None:
        """One measured round."""
        pids = tree(self.process.pid)
        cpu = cpu_seconds(pids)
        seconds = self.unmeasured_round()
        self.score.seconds.append(seconds)
        self.score.cpu_seconds.append(cpu_seconds(pids) - cpu)

    def turn(self, burst: int) -> None:
        """`burst` measured rounds; where they are several, after one that is counted apart."""
        if burst > 1:
            self.score.first_seconds.append(self.unmeasured_round())
        for _ in range(burst):
            self.round()

    def unmeasured_round(self) -> float:
        """Seconds from the command until it is ready for the next."""
        start = time.perf_counter()
        self._say("round")
        self._hear()
        return time.perf_counter() - start

    def finish(self) -> Score:
        """A round for its memory, and its accuracy."""
        self.score.peak_bytes = peak_memory_bytes(self.process.pid, self.unmeasured_round)
        self._say("accuracy")
        self.score.accuracy = float(self._hear())
        return self.score

    def close(self) -> None:
        """End it and all that it started."""
        left = tree(self.process.pid)
        for fd in (self._commands, self._answers):
            with contextlib.suppress(OSError):
                os.close(fd)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in left[1:]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os.close(self._said)

    def _say(self, command: str) -> None:
        try:
            os.write(self._commands, f"{command}\n".encode())
        except BrokenPipeError as error:
            raise self._failure("ended") from error

    def _hear(self) -> str:
        """The next line."""
        deadline = time.monotonic() + self.contestant.patience_seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"was silent for {self.contestant.patience_seconds:.0f} s")
            block = os.read(self._answers, 4096)
            if not block:
                raise self._failure("ended")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _failure(self, what: str) -> ContestantError:
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, 1500, max(0, size - 1500)).decode(errors="replace").strip()
        return ContestantError(f"{self.contestant.name} {what}; it said last:\n{said}")


def contest(contestants: Sequence[Contestant], turns: int, burst: int = 1) -> dict[str, Score]:
    """`turns` bursts of measured rounds of each, in turns; those that fail are named on stderr and left out."""
    seats: dict[str, Seat] = {}
    try:
        for contestant in contestants:
            with _left_out():
                seats[contestant.name] = Seat(contestant)
        for turn in range(turns + 1):
            for name in list(seats):
                try:
                    seats[name].turn(burst) if turn else seats[name].unmeasured_round()
                except ContestantError as error:
                    print(error, file=sys.stderr)
                    seats.pop(name).close()
        scores = {}
        for name, seat in seats.items():
            with _left_out():
                scores[name] = seat.finish()
        return scores
    finally:
        for seat in seats.values():
            seat.close()


@contextlib.contextmanager
def _left_out():  # type: ignore[no-untyped-def]
    try:
        yield
    except ContestantError as error:
        print(error, file=sys.stderr)


def _unnamed_file() -> int:
    return os.memfd_create("said") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)


def python_contestant(name: str, module: str, *arguments: str) -> Contestant:
    """A contestant of this interpreter."""
    return Contestant(name, (sys.executable, "-m", module, *arguments))
