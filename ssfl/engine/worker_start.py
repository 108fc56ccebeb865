"""A worker process's first instructions: watch the parent, and only then load what computing needs.

Loading torch takes seconds; a worker must not outlive its parent in that time either.
"""

from __future__ import annotations

import os
import sys
import threading


def main(arguments: list[str]) -> None:
    """`worker_start CONNECTION DOWN_ARENA UP_ARENA LIFELINE`: file descriptors inherited from the parent."""
    channel, down, up, lifeline = map(int, arguments)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    from ssfl.engine import worker

    worker.main(channel, down, up)


def _die_with_parent(lifeline: int) -> None:
    """The parent holds the other end; end of file means that it is gone, however it went."""
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
