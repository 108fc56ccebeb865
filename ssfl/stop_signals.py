"""Signals that stop a command cleanly: Ctrl-C (SIGINT), SIGTERM, and SIGHUP if it is not ignored (nohup)."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import final

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@final
class StopHandler:
    """The handler of the three signals: it records the signal and raises KeyboardInterrupt in the main thread."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __call__(self, number: int, frame: object) -> None:
        self.received.append(number)
        if number == signal.SIGHUP:
            _leave(self._terminals)
        raise KeyboardInterrupt

    def install(self) -> None:
        """Install the handler, also if SIGINT is ignored (background jobs), but not if SIGHUP is ignored (nohup)."""
        for number in STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)


def stop_requested() -> bool:
    """Whether a signal to stop has arrived.

    A KeyboardInterrupt can be lost: Python discards exceptions in finalizers and callbacks, and some libraries catch
    every exception while they are imported. Long work therefore also calls this between its steps.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(handler, StopHandler) and bool(handler.received)


def check_stop() -> None:
    """Raise KeyboardInterrupt if a signal to stop has arrived."""
    if stop_requested():
        raise KeyboardInterrupt


def _leave(terminals: Sequence[int]) -> None:
    """Redirect the closed terminal to /dev/null; writes to it would fail and prevent a clean end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
