"""Many runs, one after another, each in its own process; one table and one plot at the end.

A process per cell keeps cells apart (memory, threads, crashes) and makes a cell the very same thing as a run.
A sweep folder holds `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from ssfl.config import Config, ConfigError, sweep_cells
from ssfl.sweep_process import Progress, run_process

SSFL = (sys.executable, "-m", "ssfl")


@final
@dataclass(frozen=True)
class SweepCell:
    """One run of the sweep as its folder remembers it."""

    name: str  # folder and experiment name
    label: str  # the words that make it different
    overrides: tuple[str, ...]
    rounds: int


def start_sweep(words: Sequence[str], command: Sequence[str] = SSFL) -> int:
    """Check every cell, make the folder, run them all. Exit code: 0, or 1 where a cell failed twice.

    `command` starts the program that runs a cell (tests put another one in its place).

    Raises:
        ConfigError: a cell is impossible, or there is nothing to sweep; nothing has been written then.
    """
    found, notes = sweep_cells(words)
    names = _names([cell.label for cell in found])
    cells = [
        SweepCell(name, cell.label, cell.overrides, cell.config.training.comm_round)
        for name, cell in zip(names, found)
    ]
    folder = _new_folder(found[0].config)
    for note in notes:
        print(f"note: {note}")
    text = json.dumps({"words": list(words), "cells": [asdict(cell) for cell in cells]}, indent=1)
    (folder / "sweep.json").write_text(text + "\n", encoding="utf-8")
    return _run_cells(folder, cells, command)


def resume_sweep(folder: Path, command: Sequence[str] = SSFL) -> int:
    """Go on with the cells of a sweep folder that have not ended.

    Raises:
        ConfigError: the folder is not a sweep's.
    """
    try:
        stored = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        cells = [SweepCell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in stored["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("--resume", f"{folder}: no readable sweep.json there ({error})") from None
    return _run_cells(folder, cells, command)


def compare(folders: Sequence[Path], out: Path) -> int:
    """Write the comparison of all runs in `folders` to `out` and print its table."""
    from ssfl.report import write_report

    print(write_report(folders, out))
    return 0


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


def _run_cells(folder: Path, cells: Sequence[SweepCell], command: Sequence[str]) -> int:
    failed = []
    try:
        with Progress(len(cells)) as progress:
            for cell in cells:
                progress.start(cell.label, cell.rounds)
                ended = _finished(folder, cell) or _run_cell(folder, cell, command, progress)
                progress.stop(ended)
                if not ended:
                    failed.append(cell)
    except KeyboardInterrupt:
        print(f"stopped; go on with: ssfl sweep --resume {folder}", file=sys.stderr)
        return 130
    for cell in failed:
        print(f"failed twice: {cell.label}; see {_log(folder, cell)}", file=sys.stderr)
    if len(failed) < len(cells):
        runs = [run for cell in cells for run in _run_folders(folder, cell) if _is_finished(run)]
        compare(runs, folder / "report")
    print(f"sweep folder: {folder}")
    return 1 if failed else 0


def _run_cell(folder: Path, cell: SweepCell, command: Sequence[str], progress: Progress) -> bool:
    """Run or resume one cell; once more where it fails. Bad input (exit 2) would only fail again."""
    resumed = bool(_run_folders(folder, cell))
    for attempt in (1, 2):
        started = _run_folders(folder, cell)
        # A resume that failed is not resumed again: the second attempt starts afresh.
        again = bool(started) and (attempt == 1 or not resumed)
        words = ["resume", str(started[-1]), "--console", "json"] if again else _fresh(folder, cell)
        code = run_process([*command, *words], _log(folder, cell), progress.event)
        if code == 130:
            raise KeyboardInterrupt
        if code == 0 or code == 2:
            return code == 0
        if attempt == 1:
            progress.retry(cell.label, code)
    return False


def _fresh(folder: Path, cell: SweepCell) -> list[str]:
    place = str(folder / "runs").replace("'", "\\'")
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
