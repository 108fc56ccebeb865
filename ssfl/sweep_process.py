"""One cell's process and the display over all cells."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Event = Mapping[str, Any]

CLEAN_END_SECONDS = 5.0
"""How long an interrupted cell may take to write its last checkpoint."""


def run_process(command: Sequence[str], log: Path, on_event: Callable[[Event], None]) -> int:
    """Run a command to its end, copy what it prints to `log`, hand over each line that is a JSON object.

    Ctrl-C reaches the child by itself (same terminal); it is given time to end cleanly, then told again, then
    killed, so that none is left behind. Returns the exit code.
    """
    with log.open("a", encoding="utf-8") as copy:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                copy.write(line)
                copy.flush()
                event = _parse(line)
                if event is not None:
                    on_event(event)
            return child.wait()
        finally:
            _end(child)


def _parse(line: str) -> Event | None:
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _end(child: subprocess.Popen[str]) -> None:
    for stop in (None, signal.SIGINT, signal.SIGKILL):
        if stop is not None and child.poll() is None:
            child.send_signal(stop)
        try:
            child.communicate(
                timeout=CLEAN_END_SECONDS
            )  # reads on: a full or closed pipe would stop its clean end
            return
        except subprocess.TimeoutExpired:
            continue


@final
class Progress:
    """Cells done, and the rounds of the cell at work: bars on a terminal, one line a cell elsewhere."""

    def __init__(self, cells: int, console: Console | None = None) -> None:
        self._cells, self._number = cells, 0
        self._console = console or Console()
        self._accuracy: float | None = None
        self._label, self._since = "", 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:g}/{task.total:g}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, *times, console=self._console, disable=not self._console.is_terminal)
        self._all = self._bars.add_task("cells", total=cells)
        self._one = self._bars.add_task("round", total=1)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, label: str, rounds: int) -> None:
        """A cell begins."""
        self._number += 1
        self._label, self._since, self._accuracy = label, time.monotonic(), None
        self._bars.reset(self._one, total=rounds, description=label)

    def event(self, event: Event) -> None:
        """A line of the cell's own progress."""
        accuracy = event.get("global_accuracy")
        if isinstance(accuracy, int | float):
            self._accuracy = float(accuracy)
        if isinstance(event.get("round"), int):
            self._bars.update(self._one, completed=event["round"])

    def retry(self, label: str, code: int) -> None:
        """A cell failed and is tried once more."""
        print(f"{label}: exit {code}, trying once more", file=sys.stderr)

    def stop(self, ended: bool) -> None:
        """The cell has ended, well or not."""
        seconds = time.monotonic() - self._since
        accuracy = "" if self._accuracy is None else f", global accuracy {self._accuracy:.3f}"
        said = f"done in {seconds:.0f} s{accuracy}" if ended else "FAILED"
        self._bars.advance(self._all)
        self._console.print(
            f"[{self._number}/{self._cells}] {self._label}: {said}", markup=False, highlight=False
        )
