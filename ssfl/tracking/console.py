"""Progress on the console: a bar on a terminal, plain lines elsewhere, warnings only, or the events as JSON."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from ssfl.tracking.jsonl import json_line
from ssfl.tracking.observer import TrackingError

MODES = ("rich", "plain", "quiet", "json")
PLAIN_SECONDS = 1.0
"""Minimum time between two plain lines, so that fast rounds do not fill a log file."""
ROUNDS_MEASURED = 20
"""Number of latest rounds from which the remaining time is computed; few, so that it follows a change of speed."""
LONG_ROUND_SECONDS = 10.0
"""Minimum time of the first round to estimate the remaining time from it; a shorter round may be mostly loading."""
WIDE_COLUMNS = 100
"""Minimum width of a terminal to show a bar beside the numbers."""


@final
class ConsoleProgress:
    """Shows the progress of a run.

    Args:
        mode: rich (a bar; plain lines if `stream` is not a terminal) | plain (a line per evaluation) | quiet
            (warnings only) | json (each event on a line).
        total_rounds: training rounds of the whole run.
        stream: where to write.
        past: events of this run before a resume, whose bytes are included.
        clock: seconds, monotonic.

    Raises:
        TrackingError: unknown mode.
    """

    def __init__(
        self,
        mode: str,
        total_rounds: int,
        stream: TextIO,
        past: Iterable[Mapping[str, Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode not in MODES:
            raise TrackingError(f"tracking.console={mode}: must be one of auto, {', '.join(MODES)}")
        self._mode = "plain" if mode == "rich" and not has_cursor(stream) else mode
        self._total_rounds, self._stream, self._clock = total_rounds, stream, clock
        self._status = _Status(total_rounds, clock())
        for event in past:
            self._status.add(event, None)
        self._last_line = -PLAIN_SECONDS
        self._bar = _Bar(total_rounds, stream) if self._mode == "rich" else None

    def record(self, event: Mapping[str, Any]) -> None:
        """Show one event, if the mode shows its kind."""
        if self._mode == "json":
            self._print(json_line(event))
            return
        self._status.add(event, self._clock())
        kind = event["event"]
        if kind == "warning":
            self._print(f"warning: {event['message']}")
        elif self._mode != "quiet":
            self._show(kind, event)

    def close(self) -> None:
        """Stop the bar; its last state stays visible."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, kind: str, event: Mapping[str, Any]) -> None:
        now = self._clock()
        if kind == "run_started":
            self._print(headline(event))
        elif kind == "resumed":
            self._print(f"resumed after round {event['round']} of {self._total_rounds}")
        elif kind == "extended":
            self._print(f"extended from {event['rounds_before']} to {event['rounds']} rounds")
        elif kind == "phase":
            self._print(phase_line(event))
        elif kind == "round" and self._bar is None:
            self._plain_round(event, now)
        elif kind in ("run_finished", "run_interrupted"):
            self.close()
        if self._bar is not None and kind in ("round", "resumed"):
            self._bar.update(self._status.round, self._status.short())

    def _plain_round(self, event: Mapping[str, Any], now: float) -> None:
        closing = event["round"] >= self._total_rounds
        if closing or (_is_evaluated(event) and now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            self._print(self._status.line())

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print(text)
        else:
            print(text, file=self._stream, flush=True)


@final
class _Status:
    """The text of the bar and the lines: round, latest accuracies, bytes so far, time left."""

    def __init__(self, total_rounds: int, now: float) -> None:
        self.round = 0
        self._total_rounds = total_rounds
        self._down = self._up = self._peer = 0
        self._accuracy = ""
        self._last_exchange = now
        self._rounds: deque[float] = deque(maxlen=ROUNDS_MEASURED)

    def add(self, event: Mapping[str, Any], now: float | None) -> None:
        """Add an event that came at time `now`; None: it came before this process began."""
        if now is not None:
            self._measure(event, now)
        if event["event"] == "resumed":
            self.round = event["round"]
        if event["event"] not in ("round", "phase"):
            return
        self.round = max(self.round, event["round"])
        self._down += event["downlink_bytes"]
        self._up += event["uplink_bytes"]
        self._peer += event.get("peer_bytes") or 0
        if _is_evaluated(event):
            self._accuracy = accuracy_text(event)

    def _measure(self, event: Mapping[str, Any], now: float) -> None:
        """A round is timed from the previous exchange, so that start-up, scoring and masks are not included."""
        kind = event["event"]
        if kind == "round":
            self._rounds.append((now - self._last_exchange) / max(event["round"] - self.round, 1))
        if kind in ("run_started", "resumed", "phase", "round"):
            self._last_exchange = now

    def line(self) -> str:
        """`round 12/30  global 91.4 %  clients 88.0 ± 5.1 %  12.3 MB down  12.1 MB up  0:41 left`."""
        parts = [f"round {self.round}/{self._total_rounds}", self._accuracy]
        parts += [f"{size(self._down)} down", f"{size(self._up)} up"]
        parts += [f"{size(self._peer)} between clients"] if self._peer else []
        return "  ".join(part for part in [*parts, self._left()] if part)

    def short(self) -> str:
        """The same without the round, shortened to fit into 80 columns beside a bar."""
        moved = f"{size(self._down)}↓ {size(self._up)}↑" + (f" {size(self._peer)}↔" if self._peer else "")
        return "  ".join(part for part in (self._accuracy.replace(" ± ", "±"), self._left(), moved) if part)

    def _left(self) -> str:
        """From the latest rounds. The first one includes warm-up; it is used only if it is long and the only one."""
        measured = list(self._rounds)
        if not measured or (len(measured) == 1 and measured[0] < LONG_ROUND_SECONDS):
            return ""
        counted = measured[1:] if 1 < len(measured) < ROUNDS_MEASURED else measured
        return duration(sum(counted) / len(counted) * (self._total_rounds - self.round)) + " left"


@final
class _Bar:
    """A rich progress bar over rounds; lines printed during the run appear above it."""

    def __init__(self, total_rounds: int, stream: TextIO) -> None:
        console = Console(file=stream)
        count = Column(no_wrap=True, min_width=len(f"{total_rounds}/{total_rounds}"))
        columns = [TextColumn("{task.completed:g}/{task.total:g}", table_column=count)]
        bar = [BarColumn(bar_width=20)] if console.width >= WIDE_COLUMNS else []
        self._progress = Progress(
            *columns, *bar, TextColumn("{task.description}"), console=console, refresh_per_second=5
        )
        self._task: TaskID = self._progress.add_task("", total=total_rounds)
        self._progress.start()

    def update(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=text)

    def print(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


def has_cursor(stream: TextIO) -> bool:
    """Whether a bar can be drawn: a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def headline(event: Mapping[str, Any]) -> str:
    """One line that describes the run."""
    return (
        f"{event['algorithm']}: {event['model']} ({event['parameters']:,} parameters) on {event['dataset']}, "
        f"{_counted(event['clients'], 'client')}, {event['cohort']} a round, {_counted(event['rounds'], 'round')}, "
        f"seed {event['seed']}"
    )


def phase_line(event: Mapping[str, Any]) -> str:
    """One line for an exchange that is not a training round."""
    parts = [
        f"{event['phase']}: {_counted(event['clients'], 'client')}",
        f"{size(event['downlink_bytes'])} down",
        f"{size(event['uplink_bytes'])} up",
    ]
    if event.get("layer_density"):
        parts.append(f"density {event['density']:.4g}")
    if _is_evaluated(event):
        parts.append(accuracy_text(event))
    return "  ".join(parts)


def accuracy_text(event: Mapping[str, Any]) -> str:
    """The accuracies of an evaluation in percent; only one of them if the method has no other."""
    parts = []
    if event.get("global_accuracy") is not None:
        parts.append(f"global {100 * event['global_accuracy']:.1f} %")
    if event.get("client_accuracy_mean") is not None:
        spread = 100 * (event.get("client_accuracy_std") or 0.0)
        parts.append(f"clients {100 * event['client_accuracy_mean']:.1f} ± {spread:.1f} %")
    return "  ".join(parts)


def size(count: float) -> str:
    """Bytes as B, kB, MB or GB (powers of 1000) with three digits."""
    if count < 1e3:
        return f"{count:.0f} B"
    unit, bytes_per_unit = ("kB", 1e3) if count < 1e6 else ("MB", 1e6) if count < 1e9 else ("GB", 1e9)
    value = count / bytes_per_unit
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _is_evaluated(event: Mapping[str, Any]) -> bool:
    return event.get("global_accuracy") is not None or event.get("client_accuracy_mean") is not None
