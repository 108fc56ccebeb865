"""What glibc's malloc does with freed memory: keep it between steps, share it between threads, give it back."""

from __future__ import annotations

import ctypes
import sys

from ssfl.core.pages import LARGE_BYTES

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_THREADS_PER_ARENA = 4
"""Threads that allocate in one arena reuse each other's freed memory; too many wait for its lock."""
_SMALL_MODEL_BYTES = 4_000_000
"""Up to here a step's tensors stay in a core's cache, so another core's memory is slower (docs/performance.md)."""


def keep_freed_memory(threads: int = 1, model_bytes: int = 1 << 62) -> bool:
    """Tell malloc to reuse large blocks; call before torch allocates. False where there is no glibc.

    A step of a small network maps 1,700 pages without it (docs/performance.md). threads: how many will compute; those
    of a small model (`model_bytes`) keep memory of their own. What the last call before threads allocate says, stays.
    """
    per_arena = 1 if model_bytes <= _SMALL_MODEL_BYTES else _THREADS_PER_ARENA
    libc = _glibc()
    if libc is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 128 << 20),
        (_M_ARENA_MAX, -(-threads // per_arena)),
    )
    answers = [libc.mallopt(name, value) for name, value in settings]  # all, not up to the first refusal
    return all(answer == 1 for answer in answers)


def give_back_freed_memory(model_bytes: int = LARGE_BYTES) -> bool:
    """Return what is free to the system, once: after a phase whose memory the next one does not need.

    Of a model below `LARGE_BYTES` nothing is returned: it is little, and a round would wait for its pages.
    """
    libc = _glibc() if model_bytes >= LARGE_BYTES else None
    return libc is not None and bool(libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None
