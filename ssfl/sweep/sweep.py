"""Many runs, each in its own process, one after another or several at a time; one table and one plot at the end.

One process per cell isolates the cells (memory, threads, crashes), and a cell is an ordinary run. A sweep folder
contains `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl import run_folder
from ssfl.config import ConfigError, load_config
from ssfl.config.combinations import Combination
from ssfl.output import output_error
from ssfl.sweep.cells import SweepCell, cell_names, cells_of
from ssfl.sweep.choose import Search, judged, keep, search_of, widened
from ssfl.sweep.folder import (
    cell_is_finished,
    log_of,
    new_folder,
    read_cells,
    read_choose,
    read_widenings,
    read_words,
    run_folders,
    this_folder,
    write_cells,
)
from ssfl.sweep.launchers.launcher import check_launcher, launcher
from ssfl.sweep.results import finished_runs, has_results
from ssfl.sweep.runner import Runner

INTERRUPTED = 130
SSFL = (sys.executable, "-m", "ssfl")


class _Stopped(Exception):
    """The sweep cannot go on now; its cells continue when it is started again."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@final
@dataclass(frozen=True)
class Placement:
    """Where the cells run, and how many at a time."""

    launcher: str = "local"  # local | submitit | ray
    jobs: int | None = None  # None: one on this machine, all of them on a cluster
    options: tuple[str, ...] = ()  # KEY=VALUE, for the cluster


def start_sweep(
    words: Sequence[str],
    command: Sequence[str] = SSFL,
    place: Placement = Placement(),
    into: Path | None = None,
    lines: Sequence[Sequence[str]] = (),
    choose: tuple[str, str] | None = None,
    skip_finished: Path | None = None,
) -> int:
    """Check every cell, create the folder, run all cells.

    Exit code: 0, or 1 if a cell failed twice (with `choose`: if a setting has no value); 130 after Ctrl-C.

    Args:
        words: as for `combinations`.
        command: starts the program that runs a cell (tests replace it).
        place: where cells run, and how many at a time.
        into: the folder: created if it does not exist; if it has the same sweep, that is continued. None: a new folder
            OUTPUT_DIR/EXP_NAME/sweep-TIME.
        lines: several products in one sweep: each line's words follow the common `words`. For combinations that are
            not one product, such as a different learning rate for each method.
        choose: a key with several values (or its last part) and an accuracy on held-out rows: the best value of the
            key is found for every setting and recorded (`ssfl.sweep.choose`).
        skip_finished: runs, or packed results: cells that have finished there are left out, unless they have begun in
            `into`.

    Raises:
        ConfigError: a cell is impossible, no key has several values, `into` has other content, `skip_finished` has no
            run or is combined with `choose`; no file was written.
        LauncherError: the launcher is not available; no file was written.
    """
    check_launcher(place.launcher, place.options)
    found, notes = cells_of(words, lines)
    for cell in found:
        if cell.config.checkpoint.stop_after_seconds:
            raise ConfigError(
                "checkpoint.stop_after_seconds",
                f"checkpoint.stop_after_seconds={cell.config.checkpoint.stop_after_seconds:g}: a sweep runs until its "
                "cells have finished; use it with ssfl run, or stop the sweep with Ctrl-C and continue it later",
            )
    search = None if choose is None else search_of(*choose, found)
    asked = [*words, *(" ".join(line) for line in lines)]
    names = cell_names([cell.label for cell in found])
    cells = [
        SweepCell(name, cell.label, cell.overrides, cell.config.training.comm_round)
        for name, cell in zip(names, found)
    ]
    for note in notes:
        print(f"note: {note}")
    if skip_finished is not None:
        if search is not None:
            raise ConfigError(
                "--skip-finished", "--skip-finished cannot go with --choose: a search needs all its runs"
            )
        cells = _without_results(cells, found, skip_finished, into)
        if not cells:
            return 0
    folder = new_folder(found[0].config) if into is None else this_folder(into, asked)
    with run_folder.owned(folder):
        if into is not None:
            this_folder(into, asked)  # another sweep may have started in it since
        try:
            if search is not None:
                return _choose(folder, asked, cells, command, place, search)
            write_cells(folder, asked, cells)
            return 1 if _run_cells(folder, cells, command, place) else 0
        except _Stopped as stop:
            return stop.code


def _without_results(
    cells: Sequence[SweepCell], found: Sequence[Combination], results: Path, into: Path | None
) -> list[SweepCell]:
    """The cells without a finished run in `results`; those that have begun in `into` stay."""
    finished = finished_runs(results)
    left = [
        cell
        for cell, combination in zip(cells, found)
        if not has_results(combination.config, finished.settings)
        or (into is not None and run_folders(into, cell))
    ]
    versions = f" (code {', '.join(finished.codes)})" if finished.codes else ""
    print(f"{len(cells) - len(left)} of {len(cells)} cells have finished in {results}{versions}")
    return left


def _choose(
    folder: Path,
    asked: Sequence[str],
    cells: Sequence[SweepCell],
    command: Sequence[str],
    place: Placement,
    search: Search,
    widened_before: int = 0,
) -> int:
    """Run the cells, evaluate them, extend the grid while an edge is best; also writes the record if cells failed.

    A cell that failed twice, such as one with a rate that diverges, is not run again in the widenings.
    """
    failed: list[SweepCell] = []
    for widening in range(widened_before, search.widenings + 1):
        write_cells(folder, asked, cells, (search.key, search.by), widening)
        failed += _run_cells(folder, cells, command, place, failed)
        choice = judged(search, folder, cells)
        more = widened(search, choice, cells)
        if len(more) == len(cells) or widening == search.widenings:
            break
        cells = more
    keep(choice, folder)
    return 0 if len(choice.best()) == len(choice.settings()) else 1


def resume_sweep(folder: Path, command: Sequence[str] = SSFL, place: Placement = Placement()) -> int:
    """Continue with the cells of a sweep folder that have not ended.

    Raises:
        ConfigError: the folder is not a sweep's folder.
        LauncherError: the launcher is not available.
    """
    check_launcher(place.launcher, place.options)
    read_cells(folder)  # raises before files are written there
    with run_folder.owned(folder):
        cells, choose = read_cells(folder), read_choose(folder)
        try:
            if choose is not None:
                search = search_of(
                    *choose, [Combination(c.label, c.overrides, load_config(c.overrides)) for c in cells]
                )
                words, before = read_words(folder), min(read_widenings(folder), search.widenings)
                return _choose(folder, words, cells, command, place, search, before)
            return 1 if _run_cells(folder, cells, command, place) else 0
        except _Stopped as stop:
            return stop.code


def compare(folders: Sequence[Path], out: Path) -> int:
    """Write the comparison of all runs in `folders` to `out` and print its table."""
    from ssfl.report.write import write_report

    print(write_report(folders, out))
    return 0


def _run_cells(
    folder: Path,
    cells: Sequence[SweepCell],
    command: Sequence[str],
    place: Placement,
    left_out: Sequence[SweepCell] = (),
) -> list[SweepCell]:
    """Run the cells that have not finished, except those left out; returns those that failed. Raises _Stopped."""
    again = f"ssfl sweep --resume {shlex.quote(str(folder))}"
    unfinished = [cell for cell in cells if not cell_is_finished(folder, cell)]
    todo = [cell for cell in unfinished if cell not in left_out]
    jobs = place.jobs or (1 if place.launcher == "local" else len(cells))
    runner = Runner(folder, command, launcher(place.launcher, folder, jobs, place.options), jobs)
    try:
        failed = runner.run(todo)
    except KeyboardInterrupt:
        print(f"stopped; continue with: {again}", file=sys.stderr)
        raise _Stopped(INTERRUPTED) from None
    except OSError as error:
        reason = output_error(error)
        if reason is None:
            raise
        print(f"ssfl: {reason}; continue with: {again}", file=sys.stderr)
        raise _Stopped(1) from None
    if len(unfinished) < len(cells):
        print(f"{len(cells) - len(unfinished)} of {len(cells)} cells had ended before")
    for cell in failed:
        print(f"failed twice: {cell.label}; see {log_of(folder, cell)}", file=sys.stderr)
    if len(failed) + len(left_out) < len(cells):
        runs = [run for cell in cells for run in run_folders(folder, cell) if run_folder.is_finished(run)]
        try:
            compare(runs, folder / "report")
        except OSError as error:
            reason = output_error(error)
            if reason is None:
                raise
            print(f"ssfl: the cells have ended, but their report is not written: {reason}", file=sys.stderr)
            print(f"write it with: {again}", file=sys.stderr)
            raise _Stopped(1) from None
    print(f"sweep folder: {folder}; means over seeds, and the paper's: ssfl table {shlex.quote(str(folder))}")
    return failed
