"""Facts about the machine, and time and memory of a tree of processes. From Linux's /proc; elsewhere NaN."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

from benchmarks.isa import caps_set

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SAMPLE_SECONDS = 0.05
TREE_SECONDS = 0.5
"""Intervals in seconds for sampling memory and for listing processes."""


def describe(kernels: bool = True) -> dict[str, object]:
    """Processor, cores, memory, versions and load, to record with figures. kernels: False if ssfl ran without them."""
    import torch

    from ssfl.native.library import isa

    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "arithmetic": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if has_flag(name)],
        "instruction_sets": {
            "ssfl": isa() if kernels else None,
            "torch": torch.backends.cpu.get_cpu_capability(),
            "caps": caps_set(),
        },
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def has_bf16_arithmetic() -> bool:
    """Whether the processor has bf16 multiplication, and the limits allow it."""
    if caps_set().get("ONEDNN_MAX_CPU_ISA"):
        return False
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
    """Process ids of `root` and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:  # the list grows during the loop
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes, including ended children; resolution 10 ms per process."""
    wanted = set(pids)
    return sum(sum(map(int, f[11:15])) for pid, f in _stats() if pid in wanted) / _TICKS_A_SECOND


def _stats() -> Iterator[tuple[int, list[str]]]:
    """(pid, fields of /proc/pid/stat after the name: state, parent, …)."""
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def pss_bytes(pids: list[int]) -> float:
    """Total memory of these processes; shared pages count proportionally (proportional set size)."""
    total, seen = 0, False
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
                    seen = True
    return total if seen else math.nan


def resident_bytes(pids: list[int]) -> float:
    """Pages of these processes in memory, shared ones counted for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * _PAGE_BYTES if pages else math.nan


def memory_bytes(pids: list[int]) -> float:
    """Memory of these processes as if no other process ran: pages of files (libraries) count once and in full.

    `pss_bytes` counts only a share of pages that other processes also use, so it decreases while others use the same
    libraries.
    """
    total, files = 0, dict[tuple[str, str], int]()
    for pid in pids:
        with contextlib.suppress(OSError):
            for place, fields in _mappings((_PROC / str(pid) / "smaps").read_text()):
                own = fields["Anonymous"] if place else fields["Pss"]
                total += own
                if place:
                    files[place] = max(files.get(place, 0), fields["Rss"] - own)
    return 1024 * (total + sum(files.values())) if total else math.nan


def _mappings(smaps: str) -> Iterator[tuple[tuple[str, str] | None, dict[str, int]]]:
    """((file, offset) or None for memory without a file, kilobytes by name) of each mapping in /proc/pid/smaps."""
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE)[1:]:
        head, *lines = block.splitlines()
        _, _, offset, _, inode, *path = head.split(maxsplit=5)
        rows = [line.partition(":") for line in lines if line.endswith("kB")]
        fields = {name: int(value.split()[0]) for name, _, value in rows}
        # A deleted or nameless file is shared memory between processes of one tree.
        of_file = inode != "0" and path and path[0].startswith("/") and not path[0].endswith("(deleted)")
        yield ((path[0], offset) if of_file else None), fields


def peak_memory_bytes(root: int, during: Callable[[], object]) -> float:
    """The largest sampled memory while `during` runs.

    Samples are `resident_bytes`, which are fast to read; the difference to `memory_bytes`, measured at the end, is
    subtracted.
    """
    done, peak = Event(), resident_bytes(tree(root))

    def watch() -> None:
        nonlocal peak
        pids, looked = tree(root), time.monotonic()
        while not done.wait(SAMPLE_SECONDS):
            if time.monotonic() - looked > TREE_SECONDS:
                pids, looked = tree(root), time.monotonic()
            peak = max(peak, resident_bytes(pids))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        during()
    finally:
        done.set()
        watcher.join()
    pids = tree(root)
    return peak + memory_bytes(pids) - resident_bytes(pids)
