"""Tasks that echo, fail, die or wait on purpose, and what /proc says of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientState, ClientTask, Work
from ssfl.core.payloads import DenseValues, Payload, dense_values

VICTIM = 2


@dataclass(frozen=True)
class Echo(ClientTask):
    """Sends back what came, times two, and remembers it: no training, so that weights may have any size."""

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        self.happen(context)
        return {"theta": dense_values(inbox[0].parts["w"])}

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        doubled = 2 * work["theta"]
        return Payload({"w": DenseValues(doubled)}, context.client), {"memory": doubled}

    def happen(self, context: ClientContext) -> None:
        """What a fault does before the work."""


@dataclass(frozen=True)
class KillOnce(Echo):
    """The victim's first worker dies as by kill -9; `marker` is a file that says that it did."""

    marker: str = ""

    def happen(self, context: ClientContext) -> None:
        if context.client == VICTIM and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class KillAlways(Echo):
    """Every worker that takes the victim dies."""

    def happen(self, context: ClientContext) -> None:
        if context.client == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Raise(Echo):
    """The victim's data are bad."""

    def happen(self, context: ClientContext) -> None:
        if context.client == VICTIM:
            raise ArithmeticError(f"client {context.client}: bad data")


@dataclass(frozen=True)
class Wait(Echo):
    """Takes long."""

    seconds: float = 60.0

    def happen(self, context: ClientContext) -> None:
        time.sleep(self.seconds)


def children(pid: int) -> list[int]:
    """Processes that a process started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def rss_bytes(pid: int) -> int:
    """Memory that a process holds now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
