"""What glibc's malloc does with freed memory: keep it between steps, share it between threads, give it back."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_THREADS_PER_ARENA = 4
"""Threads that allocate in one arena reuse each other's freed memory; too many wait for its lock."""


def keep_freed_memory(threads: int = 1) -> bool:
    """Tell malloc to reuse large blocks; call before torch allocates. False where there is no glibc.

    A step of a small network maps 1,700 pages without it (docs/performance.md). threads: how many will compute.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 128 << 20),
        (_M_ARENA_MAX, -(-threads // _THREADS_PER_ARENA)),
    )
    answers = [libc.mallopt(name, value) for name, value in settings]  # all, not up to the first refusal
    return all(answer == 1 for answer in answers)


def give_back_freed_memory() -> bool:
    """Return what is free to the system, once: after a phase whose memory the next one does not need."""
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None
