"""The memory that this process can use."""

from __future__ import annotations

import os
from pathlib import Path

CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with a container's limit, of both versions of Linux's control groups; version 2 writes `max` for none."""


def memory_bytes() -> int:
    """This machine's memory, or the limit of the container if that is lower."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CONTAINER_LIMITS:
        try:
            least = min(least, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or no limit
            continue
    return least
