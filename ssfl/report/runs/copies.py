"""Each setting and seed counts once: copies of a run are not additional repetitions; tables name the excluded runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssfl.report.runs.labels import labels, seed
from ssfl.report.runs.run import Run

SHOWN = 3
"""Maximum number of folders in the note."""


class Counted(NamedTuple):
    """Runs that count, and their copies."""

    runs: list[Run]
    copies: list[Run]


def one_a_seed(runs: Sequence[Run]) -> Counted:
    """Of several runs of one setting and seed, use a finished one, else the one with most rounds; the first if equal.

    Both lists keep the order. A run without a known seed is always counted.
    """
    best: dict[tuple[str, int], int] = {}
    run_labels = labels(runs)
    for number, (run, label) in enumerate(zip(runs, run_labels)):
        value = seed(run)
        if value is None:
            continue
        there = best.setdefault((label, value), number)
        if _came_to(run) > _came_to(runs[there]):
            best[label, value] = number
    kept = {*best.values(), *(n for n, run in enumerate(runs) if seed(run) is None)}
    return Counted([runs[n] for n in sorted(kept)], [run for n, run in enumerate(runs) if n not in kept])


def _came_to(run: Run) -> tuple[bool, int]:
    return run.finished is not None, run.rounds_done


def copies_note(folders: Sequence[Path]) -> list[str]:
    """One line that names the excluded runs; empty if there are none."""
    if not folders:
        return []
    named = ", ".join(map(str, folders[:SHOWN])) + (", ..." if len(folders) > SHOWN else "")
    runs = "1 run is" if len(folders) == 1 else f"{len(folders)} runs are"
    return [f"{runs} excluded: the same setting and seed is already counted ({named})."]
