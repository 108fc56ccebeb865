"""The start of a worker process: watch the parent before torch is imported.

Importing torch takes seconds; a worker must end with its parent also during the import.
"""

from __future__ import annotations

import os
import sys
import threading


def main(arguments: list[str]) -> None:
    """`worker_start CONNECTION DOWN_ARENA UP_ARENA LIFELINE`: file descriptors inherited from the parent."""
    channel, down, up, lifeline = map(int, arguments)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    from ssfl.engine.executors.processes import worker

    worker.main(channel, down, up)


def _die_with_parent(lifeline: int) -> None:
    """The parent holds the other end of the pipe; end of file means that it has ended."""
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
