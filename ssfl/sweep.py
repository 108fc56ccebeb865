"""Many runs, each in its own process, one after another or several at a time; one table and one plot at the end.

A process per cell keeps cells apart (memory, threads, crashes) and makes a cell the very same thing as a run.
A sweep folder holds `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl.sweep_cells import SweepCell, cell_names, cells_of
from ssfl.sweep_folder import (
    is_finished,
    log_of,
    new_folder,
    read_cells,
    run_folders,
    run_is_finished,
    this_folder,
    write_cells,
)
from ssfl.sweep_place import check_launcher, launcher
from ssfl.sweep_runner import Runner

SSFL = (sys.executable, "-m", "ssfl")


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
    found, notes = cells_of(words, lines)
    asked = [*words, *(" ".join(line) for line in lines)]
    names = cell_names([cell.label for cell in found])
    cells = [
        SweepCell(name, cell.label, cell.overrides, cell.config.training.comm_round)
        for name, cell in zip(names, found)
    ]
    for note in notes:
        print(f"note: {note}")
    folder = new_folder(found[0].config) if into is None else this_folder(into, asked)
    write_cells(folder, asked, cells)
    return _run_cells(folder, cells, command, place)


def resume_sweep(folder: Path, command: Sequence[str] = SSFL, place: Place = Place()) -> int:
    """Go on with the cells of a sweep folder that have not ended.

    Raises:
        ConfigError: the folder is not a sweep's.
        LauncherError: the place is not to be had.
    """
    check_launcher(place.launcher, place.options)
    return _run_cells(folder, read_cells(folder), command, place)


def compare(folders: Sequence[Path], out: Path) -> int:
    """Write the comparison of all runs in `folders` to `out` and print its table."""
    from ssfl.report import write_report

    print(write_report(folders, out))
    return 0


def _run_cells(folder: Path, cells: Sequence[SweepCell], command: Sequence[str], place: Place) -> int:
    todo = [cell for cell in cells if not is_finished(folder, cell)]
    jobs = place.jobs or (1 if place.launcher == "local" else len(cells))
    runner = Runner(folder, command, launcher(place.launcher, folder, jobs, place.options), jobs)
    try:
        failed = runner.run(todo)
    except KeyboardInterrupt:
        print(f"stopped; go on with: ssfl sweep --resume {folder}", file=sys.stderr)
        return 130
    if len(todo) < len(cells):
        print(f"{len(cells) - len(todo)} of {len(cells)} cells had ended before")
    for cell in failed:
        print(f"failed twice: {cell.label}; see {log_of(folder, cell)}", file=sys.stderr)
    if len(failed) < len(cells):
        runs = [run for cell in cells for run in run_folders(folder, cell) if run_is_finished(run)]
        compare(runs, folder / "report")
    print(f"sweep folder: {folder}; means over seeds, beside the paper's: ssfl table {folder}")
    return 1 if failed else 0
