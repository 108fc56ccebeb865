"""The share of processor time that other processes use during a measurement."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Positions of the columns idle and iowait of a processor in /proc/stat."""
GUEST = 8
"""Later columns are already included in earlier ones."""


@final
@dataclass(frozen=True)
class Moment:
    """Seconds so far: clock, processor time of this process, processor time of all processes on our processors."""

    wall: float
    own: float
    all: float | None
    """None if the system does not report it."""

    @staticmethod
    def now() -> Moment:
        """The present moment."""
        return Moment(time.perf_counter(), time.process_time(), _busy_seconds())


def others_share(since: Moment, now: Moment) -> float:
    """The share (0-1) of our processors' time that other processes used between two moments.

    On systems that do not count it (macOS), from the load average of the last minute.
    """
    processors = len(_processors())
    if since.all is None or now.all is None:
        return min(1.0, max(0.0, os.getloadavg()[0] - 1) / processors)
    wall = max(now.wall - since.wall, 1e-9)
    others = (now.all - since.all) - (now.own - since.own)
    return min(1.0, max(0.0, others / (wall * processors)))


def _processors() -> set[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    try:
        lines = STAT.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    ours = {f"cpu{number}" for number in _processors()}
    ticks = 0
    for name, *numbers in (line.split() for line in lines if line.startswith("cpu")):
        if name in ours:
            ticks += sum(int(n) for i, n in enumerate(numbers[:GUEST]) if i not in IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
