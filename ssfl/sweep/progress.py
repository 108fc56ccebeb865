"""The display over all cells of a sweep, from the lines that the cells print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


@final
@dataclass
class _Running:
    """A cell at work."""

    label: str
    bar: TaskID
    since: float = field(default_factory=time.monotonic)
    accuracy: str = ""
    round: int = 0


@final
class SweepProgress:
    """Completed rounds of all cells, and a bar for each running cell; without a terminal, one line per cell.

    Args:
        rounds: training rounds of each cell by its name; the remaining time counts all of them.
    """

    def __init__(self, rounds: Mapping[str, int], console: Console | None = None) -> None:
        self._rounds, self._ended = rounds, 0
        self._running: dict[str, _Running] = {}
        self._console = console or Console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:g}/{task.total:g}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, *times, console=self._console, disable=not self._console.is_terminal)
        self._all = self._bars.add_task(self._count(), total=sum(rounds.values()))

    def __enter__(self) -> SweepProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, name: str, label: str) -> None:
        """A cell begins."""
        bar = self._bars.add_task(f"  {label}", total=self._rounds[name])
        self._running[name] = _Running(label, bar)

    def line(self, name: str, line: str) -> None:
        """A line that a cell printed; only JSON objects (events of docs/metrics.md) are used."""
        event = _parse(line)
        cell = self._running[name]
        if isinstance(event.get("round"), int):
            self._reach(cell, event["round"])
        for key, metric in (("client_accuracy_mean", "clients"), ("global_accuracy", "global")):
            if isinstance(event.get(key), int | float):
                cell.accuracy = f", {metric} accuracy {event[key]:.3f}"

    def retry(self, name: str, code: int) -> None:
        """A cell failed and is repeated once."""
        print(f"{self._running[name].label}: exit {code}, trying once more", file=sys.stderr)

    def stop(self, name: str, ended: bool) -> None:
        """A cell has ended, successfully or not."""
        cell = self._running.pop(name)
        self._reach(cell, self._rounds[name])
        self._bars.remove_task(cell.bar)
        self._ended += 1
        self._bars.update(self._all, description=self._count())
        outcome = f"done in {time.monotonic() - cell.since:.0f} s{cell.accuracy}" if ended else "FAILED"
        text = f"[{self._ended}/{len(self._rounds)}] {cell.label}: {outcome}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _reach(self, cell: _Running, number: int) -> None:
        self._bars.advance(self._all, max(0, number - cell.round))
        cell.round = max(cell.round, number)
        self._bars.update(cell.bar, completed=number)

    def _count(self) -> str:
        return f"{self._ended} of {len(self._rounds)} cells; rounds"


def _parse(line: str) -> Mapping[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
