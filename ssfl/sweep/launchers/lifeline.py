"""A child process ends when its parent ends for any reason: it reads a pipe whose other end the parent holds."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

VARIABLE = "SSFL_LIFELINE"
"""Environment variable with the number of the pipe's file descriptor."""
GRACE_SECONDS = 60.0
"""Seconds that a child may take for its last checkpoint before it is killed."""


def start_bound(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`; an `ssfl` started in this way stops cleanly when this process ends, even by kill -9."""
    reading, _ = _pipe()
    environment = {**os.environ, VARIABLE: str(reading)}
    return subprocess.Popen(command, env=environment, pass_fds=(reading,), **options)


@cache
def _pipe() -> tuple[int, int]:
    """This process's pipe; no data is written to it, and no child inherits the writing end."""
    return os.pipe()


def watch() -> None:
    """In the child: send SIGTERM to this process when the parent has ended. Does nothing without a lifeline."""
    text = os.environ.pop(VARIABLE, "")
    with contextlib.suppress(OSError, ValueError):
        descriptor = int(text)
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.set_inheritable(descriptor, False)
            threading.Thread(target=_follow, args=(descriptor,), daemon=True).start()


def _follow(descriptor: int) -> None:
    # The main thread blocks signals during imports; this thread must not receive them instead.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
