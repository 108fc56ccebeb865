"""The machine in words, and what a tree of processes takes of it. Linux's /proc; elsewhere numbers are NaN."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

_PROC = Path("/proc")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SAMPLE_SECONDS = 0.02


def describe() -> dict[str, object]:
    """Processor, cores, memory, versions, load: what a figure means nothing without."""
    import torch

    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "arithmetic": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if has_flag(name)],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def has_bf16_arithmetic() -> bool:
    """Whether the processor multiplies in bf16 itself."""
    return has_flag("avx512_bf16") or has_flag("amx_bf16")


def has_flag(name: str) -> bool:
    """Whether /proc/cpuinfo lists an instruction set."""
    return name in (_first("/proc/cpuinfo", "flags") or "").split()


def _first(path: str, key: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


# ── trees of processes ───────────────────────────────────────────────────────────────────────────────────────────
def tree(root: int) -> list[int]:
    """Process ids of `root` and all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes, ended children included; resolution 10 ms a process."""
    wanted = set(pids)
    return sum(sum(map(int, f[11:15])) for pid, f in _stats() if pid in wanted) / _TICKS_A_SECOND


def _stats() -> Iterator[tuple[int, list[str]]]:
    """(pid, fields of /proc/pid/stat after the name: state, parent, …)."""
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def pss_bytes(pids: list[int]) -> float:
    """Memory of these processes together, shared pages counted once (proportional set size)."""
    total, seen = 0, False
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
                    seen = True
    return total if seen else math.nan


def peak_pss_bytes(root: int, during: Callable[[], object]) -> float:
    """The largest sum seen in samples while `during` runs. Sampling costs time: never in a timed round."""
    done, peak = Event(), pss_bytes(tree(root))

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, pss_bytes(tree(root)))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        during()
    finally:
        done.set()
        watcher.join()
    return peak
