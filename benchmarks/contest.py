"""Compares contestants alternately (A B C A B C …), each in a long-lived child process.

Only one contestant computes at a time. A turn is a burst of consecutive rounds, as in a run; its first round is
reported separately, because the processor's caches then contain another contestant's data. Each contestant's first
round (imports, first allocations) and its last round, in which memory is sampled, are not counted.
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

from benchmarks.gate import NOTE
from benchmarks.machine import cpu_seconds, peak_memory_bytes, tree

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_KERNELS: Mapping[str, str] = MappingProxyType(
    {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks" / "without_kernels")])}
)
"""Environment of a process, and of the processes that it starts, in which ssfl finds no compiled kernels."""


class ContestantError(RuntimeError):
    """A contestant ended or did not answer; the message has the end of its output."""


@dataclass(frozen=True)
class Contestant:
    """How to start a contestant: `--gate READ WRITE` is appended to `command`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    patience_seconds: float = 300.0
    """Maximum wait for its setup and for each round."""


@dataclass
class Score:
    """Measurements of a contestant, per turn."""

    start_seconds: float
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    first_seconds: list[float] = field(default_factory=list)
    """Seconds of the first round of each burst; empty if turns are single rounds."""
    peak_bytes: float = float("nan")
    accuracy: float = float("nan")
    note: str = ""
    """What the contestant says of itself."""


class RunningContestant:
    """A running contestant."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        inherited = (read_commands, write_answers)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **contestant.environment}
        command = [*contestant.command, "--gate", *map(str, inherited)]
        self._output = _unnamed_file()
        start = time.perf_counter()
        self.process = subprocess.Popen(
            *(command,),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=inherited,
            env=environment,
            cwd=ROOT,
        )
        for fd in inherited:
            os.close(fd)
        self._rest = b""
        try:
            note = self._read_answer()
            if note.startswith(NOTE):
                self._read_answer()
        except BaseException:
            self.close()
            raise
        self.score = Score(time.perf_counter() - start)
        if note.startswith(NOTE):
            self.score.note = note.removeprefix(NOTE)

    def round(self) -> None:
        """One measured round."""
        pids = tree(self.process.pid)
        cpu = cpu_seconds(pids)
        seconds = self.unmeasured_round()
        self.score.seconds.append(seconds)
        self.score.cpu_seconds.append(cpu_seconds(pids) - cpu)

    def turn(self, burst: int) -> None:
        """`burst` measured rounds; if there are several, after a first round that is reported separately."""
        if burst > 1:
            self.score.first_seconds.append(self.unmeasured_round())
        for _ in range(burst):
            self.round()

    def unmeasured_round(self) -> float:
        """Seconds from the command until it is ready for the next one."""
        start = time.perf_counter()
        self._send("round")
        self._read_answer()
        return time.perf_counter() - start

    def finish(self) -> Score:
        """Run a round to sample memory, and get the accuracy."""
        self.score.peak_bytes = peak_memory_bytes(self.process.pid, self.unmeasured_round)
        self._send("accuracy")
        self.score.accuracy = float(self._read_answer())
        return self.score

    def close(self) -> None:
        """End the contestant and its child processes."""
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
        os.close(self._output)

    def _send(self, command: str) -> None:
        try:
            os.write(self._commands, f"{command}\n".encode())
        except BrokenPipeError as error:
            raise self._failure("ended") from error

    def _read_answer(self) -> str:
        """The next line."""
        deadline = time.monotonic() + self.contestant.patience_seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"did not answer for {self.contestant.patience_seconds:.0f} s")
            block = os.read(self._answers, 4096)
            if not block:
                raise self._failure("ended")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _failure(self, what: str) -> ContestantError:
        size = os.fstat(self._output).st_size
        output = os.pread(self._output, 1500, max(0, size - 1500)).decode(errors="replace").strip()
        return ContestantError(f"{self.contestant.name} {what}; its last output:\n{output}")


def contest(contestants: Sequence[Contestant], turns: int, burst: int = 1) -> dict[str, Score]:
    """`turns` bursts of measured rounds of each, alternately; failed ones are named on stderr and excluded."""
    running: dict[str, RunningContestant] = {}
    try:
        for contestant in contestants:
            with _left_out():
                running[contestant.name] = RunningContestant(contestant)
        for turn in range(turns + 1):
            for name in list(running):
                try:
                    running[name].turn(burst) if turn else running[name].unmeasured_round()
                except ContestantError as error:
                    print(error, file=sys.stderr)
                    running.pop(name).close()
        scores = {}
        for name, member in running.items():
            with _left_out():
                scores[name] = member.finish()
        return scores
    finally:
        for member in running.values():
            member.close()


@contextlib.contextmanager
def _left_out():  # type: ignore[no-untyped-def]
    try:
        yield
    except ContestantError as error:
        print(error, file=sys.stderr)


def _unnamed_file() -> int:
    return os.memfd_create("output") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)


def python_contestant(name: str, module: str, arguments: Sequence[str], kernels: bool = True) -> Contestant:
    """A contestant that runs in this Python interpreter. kernels: False as without a C compiler."""
    environment = {} if kernels else WITHOUT_KERNELS
    return Contestant(name, (sys.executable, "-m", module, *arguments), environment)
