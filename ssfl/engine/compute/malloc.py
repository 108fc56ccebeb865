"""Settings of glibc's malloc: keep freed memory between steps, share it between threads, return it to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

from ssfl.core.pages import LARGE_BYTES

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_THREADS_PER_ARENA = 4
"""Threads that allocate in one arena reuse each other's freed memory; too many wait for its lock."""
_SMALL_MODEL_BYTES = 4_000_000
"""Up to this size a step's tensors stay in a core's cache, so another core's memory is slower (docs/performance.md)."""


def keep_freed_memory(threads: int = 1, model_bytes: int = 1 << 62) -> bool:
    """Make malloc reuse large freed blocks. Returns False without glibc.

    Call it before training: it applies to later allocations. Blocks that were mapped before the call (the data set)
    are still returned to the system when freed. Without this setting, a step of a small network maps 1,700 pages
    (docs/performance.md). threads: how many will compute; with a small model (`model_bytes`) each keeps separate
    memory. The last call before threads allocate determines their setting.
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
    answers = [libc.mallopt(name, value) for name, value in settings]  # call all, also after a refusal
    return all(answer == 1 for answer in answers)


def return_large_blocks(model_bytes: int = LARGE_BYTES) -> bool:
    """Tell malloc to return every large block to the system when it is freed, and return what is free now.

    The opposite of `keep_freed_memory`, for a process that receives and sends large messages: their buffers differ in
    size and lifetime, so that malloc would keep blocks that do not fit the next ones. Nothing is changed for a model
    below `LARGE_BYTES`, or where there is no glibc; then it returns False.
    """
    libc = _glibc() if model_bytes >= LARGE_BYTES else None
    if libc is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 18), (_M_TRIM_THRESHOLD, 1 << 20), (_M_TOP_PAD, 1 << 17))
    answers = [libc.mallopt(name, value) for name, value in settings]
    libc.malloc_trim(0)
    return all(answer == 1 for answer in answers)


@contextlib.contextmanager
def kept_inside(model_bytes: int) -> Iterator[None]:
    """Freed memory is kept in this block, where a network computes, and large blocks are returned outside it."""
    if model_bytes >= LARGE_BYTES:
        keep_freed_memory()
    try:
        yield
    finally:
        return_large_blocks(model_bytes)


def give_back_freed_memory(model_bytes: int = LARGE_BYTES) -> bool:
    """Return free memory to the system once, after a phase whose memory the next one does not need.

    For models below `LARGE_BYTES` nothing is returned: the memory is small, and mapping it again costs time.
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
