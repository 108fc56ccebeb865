"""Who listens to a run, and how one event reaches all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, final


class TrackingError(ValueError):
    """A tracker that cannot be used; one line: what is missing and what to do."""


class Observer(Protocol):
    """Takes every event of a run (docs/metrics.md), in order."""

    def record(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        ...

    def close(self) -> None:
        """The run has ended, well or not; called once."""
        ...


@final
class Broadcast:
    """One observer that is many: hands each event to all, in the order given."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def record(self, event: Mapping[str, Any]) -> None:
        """Hand the event to every observer."""
        for observer in self._observers:
            observer.record(event)

    def close(self) -> None:
        """Close every observer, the others also when one fails; the failure is raised at the end."""
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.close)
