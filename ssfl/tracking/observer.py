"""The interface of observers of a run, and one that passes events to several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, final

from ssfl.errors import UserError


class TrackingError(UserError):
    """A tracker cannot be used; the text says what is missing and what to do."""


class Observer(Protocol):
    """Receives every event of a run (docs/metrics.md), in order."""

    def record(self, event: Mapping[str, Any]) -> None:
        """Receive one event."""
        ...

    def close(self) -> None:
        """Called once when the run has ended or failed."""
        ...


@final
class Broadcast:
    """An observer that passes each event to several observers, in the order given."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._closed = False

    def record(self, event: Mapping[str, Any]) -> None:
        """Pass the event to every observer."""
        for observer in self._observers:
            observer.record(event)

    def close(self) -> None:
        """Close every observer once, even if one fails; its error is raised at the end."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.close)
