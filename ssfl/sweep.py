"""Many runs, each in its own process, one after another or several at a time; one table and one plot at the end.

A process per cell keeps cells apart (memory, threads, crashes) and makes a cell the very same thing as a run.
A sweep folder holds `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from ssfl.config import Config, ConfigError, ConfigWarning, config_digest, load_config, sweep_cells
from ssfl.config.sweeps import Cell
from ssfl.report.progress import SweepProgress
from ssfl.sweep_process import Job, Launcher, Tail, check_launcher, launcher

SSFL = (sys.executable, "-m", "ssfl")
POLL_SECONDS = 0.1
CELLS = "sweep.json"


@final
@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep as its folder remembers it."""

    name: str  # folder and experiment name
    label: str  # the words that make it different
    overrides: tuple[str, ...]
    rounds: int


@final
@dataclass(frozen=True)
class Place:
    """Where the cells run, and how many at a time."""

    launcher: str = "local"  # local | submitit | ray
    jobs: int | None = None  # None: one on this machine, all of them on a cluster
    options: tuple[str, ...] = ()  # KEY=VALUE, for the cluster


def start_sweep(
    words: Sequence[str],
    command: Sequence[str] = SSFL,
    place: Place = Place(),
    into: Path | None = None,
    lines: Sequence[Sequence[str]] = (),
) -> int:
    """Check every cell, make the folder, run them all. Exit code: 0, or 1 where a cell failed twice.

    Args:
        words: as `sweep_cells` takes them.
        command: starts the program that runs a cell (tests put another one in its place).
        place: where, and how many at a time.
        into: this very folder: begun where it does not exist, gone on with where it holds the same sweep. None:
            a new folder OUTPUT_DIR/EXP_NAME/sweep-TIME.
        lines: several products in one sweep: each line's words come after the common `words`. For what a product
            cannot say, such as a learning rate of its own for each method.

    Raises:
        ConfigError: a cell is impossible, there is nothing to sweep, or `into` holds something else; nothing has
            been written then.
        LauncherError: the place is not to be had; nothing has been written either.
    """
    check_launcher(place.launcher, place.options)
    found, notes = _all_cells(words, lines) if lines else sweep_cells(words)
    asked = [*words, *(" ".join(line) for line in lines)]
    names = _names([cell.label for cell in found])
    cells = [
        SweepCell(name, cell.label, cell.overrides, cell.config.training.comm_round)
        for name, cell in zip(names, found)
    ]
    for note in notes:
        print(f"note: {note}")
    folder = _new_folder(found[0].config) if into is None else _this_folder(into, asked)
    text = json.dumps({"words": asked, "cells": [asdict(cell) for cell in cells]}, indent=1)
    (folder / CELLS).write_text(text + "\n", encoding="utf-8")
    return _run_cells(folder, cells, command, place)


def resume_sweep(folder: Path, command: Sequence[str] = SSFL, place: Place = Place()) -> int:
    """Go on with the cells of a sweep folder that have not ended.

    Raises:
        ConfigError: the folder is not a sweep's.
        LauncherError: the place is not to be had.
    """
    check_launcher(place.launcher, place.options)
    try:
        stored = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        cells = [SweepCell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in stored["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("--resume", f"{folder}: no readable sweep.json there ({error})") from None
    return _run_cells(folder, cells, command, place)


def compare(folders: Sequence[Path], out: Path) -> int:
    """Write the comparison of all runs in `folders` to `out` and print its table."""
    from ssfl.report import write_report

    print(write_report(folders, out))
    return 0


def _all_cells(words: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[Cell], list[str]]:
    """The cells of every line's product, labelled with the line's own words too; equal ones once."""
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    for line in lines:
        fixed = " ".join(word for word in line if not _lists_values(word))
        try:
            found, said = sweep_cells([*words, *line])
        except ConfigError as error:
            if "nothing to sweep" not in str(error):
                raise
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", ConfigWarning
                )  # an ignored key is normal here, as in a product
                found, said = [Cell("", (*words, *line), load_config([*words, *line]))], []
        notes += said
        for cell in found:
            label = f"{fixed} {cell.label}".strip()
            cells.setdefault(config_digest(cell.config), Cell(label, cell.overrides, cell.config))
    return list(cells.values()), notes


def _lists_values(word: str) -> bool:
    """Whether the product names the value itself."""
    return any(sign in word for sign in (",", "range(", "choice("))


def _new_folder(config: Config) -> Path:
    above = Path(config.experiment.output_dir) / config.wandb.exp_name
    stamp = time.strftime("sweep-%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = above / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=False)
            return folder
        except FileExistsError:  # another sweep of the same second
            continue
    raise ConfigError(
        "experiment.output_dir", f"experiment.output_dir={above}: a thousand sweeps in one second"
    )


def _this_folder(folder: Path, words: Sequence[str]) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            there = json.loads((folder / CELLS).read_text(encoding="utf-8"))["words"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError("--into", f"{folder}: holds something that is no sweep; name another") from None
        if there != list(words):
            said = f"{folder}: holds another sweep ({' '.join(there)})"
            raise ConfigError("--into", f"{said}; give the same words, or name another folder")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder


def _names(labels: Sequence[str]) -> list[str]:
    """A folder name per label: values, with the last part of their key where a value alone says too little."""
    names: list[str] = []
    for label in labels:
        parts = []
        for word in label.split(" "):
            key, _, value = word.partition("=")
            last = key.rsplit(".", 1)[-1]
            parts.append(
                value if last in ("algorithm", "algorithm/mode", "preset", "name") else f"{last}{value}"
            )
        name = re.sub(r"[^\w.+-]+", "-", "_".join(parts)).strip("-.") or "cell"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names


def _run_cells(folder: Path, cells: Sequence[SweepCell], command: Sequence[str], place: Place) -> int:
    todo = [cell for cell in cells if not _finished(folder, cell)]
    jobs = place.jobs or (1 if place.launcher == "local" else len(cells))
    runner = _Runner(folder, command, launcher(place.launcher, folder, jobs, place.options), jobs)
    try:
        failed = runner.run(todo)
    except KeyboardInterrupt:
        print(f"stopped; go on with: ssfl sweep --resume {folder}", file=sys.stderr)
        return 130
    if len(todo) < len(cells):
        print(f"{len(cells) - len(todo)} of {len(cells)} cells had ended before")
    for cell in failed:
        print(f"failed twice: {cell.label}; see {_log(folder, cell)}", file=sys.stderr)
    if len(failed) < len(cells):
        runs = [run for cell in cells for run in _run_folders(folder, cell) if _is_finished(run)]
        compare(runs, folder / "report")
    print(f"sweep folder: {folder}; means over seeds, beside the paper's: ssfl table {folder}")
    return 1 if failed else 0


@final
@dataclass
class _Attempt:
    """A cell at work."""

    cell: SweepCell
    job: Job
    tail: Tail
    resumed: bool
    number: int = 1


@final
class _Runner:
    """Keeps `jobs` cells at work until all have ended."""

    def __init__(self, folder: Path, command: Sequence[str], place: Launcher, jobs: int) -> None:
        self._folder, self._command, self._place, self._jobs = folder, tuple(command), place, jobs

    def run(self, cells: Sequence[SweepCell]) -> list[SweepCell]:
        """All cells; those that failed are given back, in their order."""
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
                self._place.stop()
                raise
        return [cell for cell in cells if cell in failed]

    def _ended(self, attempt: _Attempt, progress: SweepProgress, failed: list[SweepCell]) -> bool:
        done = attempt.job.done()  # asked before the log is read, so that its last lines are not missed
        cell = attempt.cell
        for line in attempt.tail.lines():
            progress.line(cell.name, line)
        if not done:
            return False
        code = attempt.job.exit_code()
        if code == 130 and self._place.here:
            raise KeyboardInterrupt
        if code not in (0, 2) and attempt.number == 1:  # bad input (2) would only fail again
            progress.retry(cell.name, code)
            self._again(attempt)
            return False
        progress.stop(cell.name, code == 0)
        if code != 0:
            failed.append(cell)
        return True

    def _first(self, cell: SweepCell) -> _Attempt:
        log = _log(self._folder, cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        tail = Tail(log)
        resumed = bool(_run_folders(self._folder, cell))
        return _Attempt(cell, self._start(cell, resume=resumed), tail, resumed)

    def _again(self, attempt: _Attempt) -> None:
        # A resume that failed is not resumed again: the second attempt starts afresh.
        there = bool(_run_folders(self._folder, attempt.cell))
        attempt.job = self._start(attempt.cell, resume=there and not attempt.resumed)
        attempt.number = 2

    def _start(self, cell: SweepCell, resume: bool) -> Job:
        if resume:
            words = ["resume", str(_run_folders(self._folder, cell)[-1]), "--console", "json"]
        else:
            words = _fresh(self._folder, cell)
        return self._place.start([*self._command, *words], _log(self._folder, cell))


def _fresh(folder: Path, cell: SweepCell) -> list[str]:
    place = os.fspath(folder / "runs").replace("'", "\\'")
    return [
        "run",
        *cell.overrides,
        f"experiment.output_dir='{place}'",
        f"wandb.exp_name='{cell.name}'",
        "tracking.console=json",
    ]


def _log(folder: Path, cell: SweepCell) -> Path:
    return folder / "logs" / f"{cell.name}.txt"


def _run_folders(folder: Path, cell: SweepCell) -> list[Path]:
    """Run folders of a cell, oldest first."""
    found = [path.parent for path in (folder / "runs" / cell.name).glob("[!.]*/config.yaml")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def _is_finished(run: Path) -> bool:
    # Written last, and atomically; the second by methods without a global model.
    return any((run / name).exists() for name in ("model.safetensors", "client_models.safetensors"))


def _finished(folder: Path, cell: SweepCell) -> bool:
    return any(_is_finished(run) for run in _run_folders(folder, cell))
