"""Tasks that echo, fail, die or wait on purpose, and facts about processes from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ssfl.algorithms.base import ClientContext, ClientState, ClientTask, Work
from ssfl.core.payloads import DenseValues, Payload, dense_values

VICTIM = 2


Fault = Callable[[ClientContext], None]
"""Called before the work."""


def echo(fault: Fault | None = None) -> ClientTask:
    """Returns the received values times two and stores them, without training, so weights may have any size."""
    return ClientTask(partial(_receive, fault), _double)


def _receive(
    fault: Fault | None, inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    if fault is not None:
        fault(context)
    return {"theta": dense_values(inbox[0].parts["w"])}, state


def _double(
    work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    doubled = 2 * work["theta"]
    return Payload({"w": DenseValues(doubled)}, context.client), {"memory": doubled}


@dataclass(frozen=True)
class KillOnce:
    """The victim's first worker dies as by kill -9; the file `marker` records that."""

    marker: Path

    def __call__(self, context: ClientContext) -> None:
        if context.client == VICTIM and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def kill_always(context: ClientContext) -> None:
    """Every worker that computes the victim dies."""
    if context.client == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)


def bad_data(context: ClientContext) -> None:
    """Raises an error for the victim, as for bad data."""
    if context.client == VICTIM:
        raise ArithmeticError(f"client {context.client}: bad data")


@dataclass(frozen=True)
class Wait:
    """Takes long."""

    seconds: float = 60.0

    def __call__(self, context: ClientContext) -> None:
        time.sleep(self.seconds)


def children(pid: int) -> list[int]:
    """Running child processes of a process."""
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
    """Resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
