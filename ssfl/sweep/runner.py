"""Runs cells, several at a time; a failed one is tried again, from its checkpoint if it has one."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl.run_folder import is_finished, is_owned
from ssfl.sweep.cells import SweepCell
from ssfl.sweep.folder import log_of, run_folders
from ssfl.sweep.launchers.launcher import LaunchedRun, Launcher
from ssfl.sweep.launchers.local import Tail
from ssfl.sweep.progress import SweepProgress

POLL_SECONDS = 0.1


@final
@dataclass
class _Attempt:
    """A cell at work."""

    cell: SweepCell
    job: LaunchedRun
    tail: Tail
    resumed: bool
    number: int = 1


@final
class _Elsewhere:
    """A cell that another process still computes after its sweep died; it is waited for, then checked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def done(self) -> bool:
        return not is_owned(self._folder)

    def exit_code(self) -> int:
        return 0 if is_finished(self._folder) else 1


@final
class Runner:
    """Runs `jobs` cells at a time until all have ended."""

    def __init__(self, folder: Path, command: Sequence[str], place: Launcher, jobs: int) -> None:
        self._folder, self._command, self._place, self._jobs = folder, tuple(command), place, jobs

    def run(self, cells: Sequence[SweepCell]) -> list[SweepCell]:
        """Run all cells. Returns those that failed, in their order."""
        waiting, running, failed = deque(cells), list[_Attempt](), list[SweepCell]()
        with SweepProgress({cell.name: cell.rounds for cell in cells}) as progress:
            try:
                while waiting or running:
                    while waiting and len(running) < self._jobs:
                        progress.start(waiting[0].name, waiting[0].label)
                        running.append(self._first(waiting.popleft()))
                    running = [attempt for attempt in running if not self._ended(attempt, progress, failed)]
                    time.sleep(POLL_SECONDS)
            except BaseException:
                try:
                    self._place.stop()
                except KeyboardInterrupt:  # also after a second Ctrl-C, no job may stay in a queue
                    self._place.stop()
                raise
        return [cell for cell in cells if cell in failed]

    def _ended(self, attempt: _Attempt, progress: SweepProgress, failed: list[SweepCell]) -> bool:
        done = attempt.job.done()  # checked before reading the log, so that no last line is lost
        cell = attempt.cell
        for line in attempt.tail.lines():
            progress.line(cell.name, line)
        if not done:
            return False
        code = attempt.job.exit_code()
        if isinstance(attempt.job, _Elsewhere) and code != 0:
            attempt.job, attempt.resumed = self._start(cell, resume=True), True
            return False
        if code == 130 and self._place.here:
            raise KeyboardInterrupt
        if code not in (0, 2) and attempt.number == 1:  # bad input (2) would fail again
            progress.retry(cell.name, code)
            self._again(attempt)
            return False
        progress.stop(cell.name, code == 0)
        if code != 0:
            failed.append(cell)
        return True

    def _first(self, cell: SweepCell) -> _Attempt:
        log = log_of(self._folder, cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        tail = Tail(log)
        runs = run_folders(self._folder, cell)
        if runs and is_owned(runs[-1]):
            return _Attempt(cell, _Elsewhere(runs[-1]), tail, resumed=False)
        return _Attempt(cell, self._start(cell, resume=bool(runs)), tail, bool(runs))

    def _again(self, attempt: _Attempt) -> None:
        # A failed resume is not resumed again: the second attempt starts from the beginning.
        there = bool(run_folders(self._folder, attempt.cell))
        attempt.job = self._start(attempt.cell, resume=there and not attempt.resumed)
        attempt.number = 2

    def _start(self, cell: SweepCell, resume: bool) -> LaunchedRun:
        if resume:
            words = ["resume", str(run_folders(self._folder, cell)[-1]), "--console", "json"]
        else:
            words = _fresh(self._folder, cell)
        return self._place.start([*self._command, *words], log_of(self._folder, cell))


def _fresh(folder: Path, cell: SweepCell) -> list[str]:
    place = os.fspath(folder / "runs").replace("'", "\\'")
    return [
        "run",
        *cell.overrides,
        f"experiment.output_dir='{place}'",
        f"wandb.exp_name='{cell.name}'",
        "tracking.console=json",
    ]
