"""Ends a command's child processes when the command has ended for any reason (run with `python -m`).

It holds one end of a pipe whose other end only the command holds. When that closes (return, error, kill -9), it ends
every process that has the command's mark in its environment and removes the temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "SSFL_DEPLOY_MARK"
GRACE_SECONDS = 4.0


def marked(mark: str) -> list[int]:
    """Ids of the processes whose environment holds the mark, without this one."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and not _zombie(entry):
                    found.append(int(entry.name))
    return found


def _zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def end_marked(mark: str, grace_seconds: float = GRACE_SECONDS, but: int = 0) -> None:
    """Send SIGTERM to all processes with the mark, and SIGKILL to those that remain after the grace period."""
    others = [pid for pid in marked(mark) if pid != but]
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + grace_seconds
    while others and time.monotonic() < end:
        time.sleep(0.1)
        others = [pid for pid in marked(mark) if pid != but]
    while others:
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        others = [pid for pid in marked(mark) if pid != but]


def main(mark: str, folder: str) -> None:
    """Wait until standard input is closed, then clean up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        while os.read(0, 64):
            pass
    end_marked(mark)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
