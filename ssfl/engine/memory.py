"""Keep freed memory in the process: glibc otherwise maps and unmaps every large activation at every step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse large blocks; call before torch allocates. False where there is no glibc.

    A step of a small network maps 1,700 pages without it (docs/performance.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 128 << 20))
    answers = [mallopt(name, value) for name, value in settings]  # all three, not up to the first refusal
    return all(answer == 1 for answer in answers)
