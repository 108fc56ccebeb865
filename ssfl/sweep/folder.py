"""A sweep's folder: `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssfl import run_folder
from ssfl.config import Config, ConfigError
from ssfl.output import output, write_atomically
from ssfl.sweep.cells import SweepCell

CELLS = "sweep.json"


def new_folder(config: Config) -> Path:
    """Create OUTPUT_DIR/EXP_NAME/sweep-TIME."""
    above = Path(config.experiment.output_dir).expanduser() / config.wandb.exp_name
    stamp = time.strftime("sweep-%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = above / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        with output(
            f"experiment.output_dir={config.experiment.output_dir}, wandb.exp_name={above.name:.100}"
        ):
            if not folder.exists():  # otherwise a sweep of the same second exists
                above.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    (folder / "logs").mkdir()
                    return folder
    raise ConfigError(
        "experiment.output_dir", f"experiment.output_dir={above}: a thousand sweeps in one second"
    )


def this_folder(folder: Path, words: Sequence[str]) -> Path:
    """The requested folder, created if missing. Raises ConfigError unless it is empty or has the same sweep."""
    made_by_us = ("logs", run_folder.LOCK)  # the files of a sweep that ended at once
    if folder.exists() and (
        not folder.is_dir() or any(path.name not in made_by_us for path in folder.iterdir())
    ):
        try:
            there = json.loads((folder / CELLS).read_text(encoding="utf-8"))["words"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError("--into", f"{folder}: is not a sweep folder; name another") from None
        if there != list(words):
            problem = f"{folder}: contains another sweep ({' '.join(there)})"
            raise ConfigError("--into", f"{problem}; give the same settings, or name another folder")
    with output(f"--into {folder}"):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder


def write_cells(
    folder: Path,
    words: Sequence[str],
    cells: Sequence[SweepCell],
    choose: Sequence[str] = (),
    widenings: int = 0,
) -> None:
    """Write sweep.json. `choose`: key and metric of `--choose`; (): an ordinary sweep. `widenings`: how often the
    search's grid was widened, up to these cells."""
    stored = {"words": list(words), "cells": [asdict(cell) for cell in cells]}
    search = {"choose": list(choose), "widenings": widenings} if choose else {}
    text = json.dumps(stored | search, indent=1)
    write_atomically(folder / CELLS, f"{text}\n".encode())


def read_choose(folder: Path) -> tuple[str, str] | None:
    """Key and metric of `--choose`; None for an ordinary sweep."""
    stored = json.loads((folder / CELLS).read_text(encoding="utf-8")).get("choose")
    return None if stored is None else (str(stored[0]), str(stored[1]))


def read_widenings(folder: Path) -> int:
    """How often the grid of `--choose` was widened."""
    return int(json.loads((folder / CELLS).read_text(encoding="utf-8")).get("widenings", 0))


def read_words(folder: Path) -> list[str]:
    """The arguments with which the sweep was started."""
    return [str(word) for word in json.loads((folder / CELLS).read_text(encoding="utf-8"))["words"]]


def read_cells(folder: Path) -> list[SweepCell]:
    """The cells of a sweep's folder. Raises ConfigError if it is not a sweep's folder."""
    try:
        stored = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        return [SweepCell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in stored["cells"]]
    except FileNotFoundError:
        raise ConfigError("--resume", f"{folder}: is not a sweep's folder (no {CELLS} there)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("--resume", f"{folder}: no readable {CELLS} there ({error})") from None


def log_of(folder: Path, cell: SweepCell) -> Path:
    """The file with the output of the cell's processes."""
    return folder / "logs" / f"{cell.name}.txt"


def run_folders(folder: Path, cell: SweepCell) -> list[Path]:
    """Run folders of a cell, oldest first."""
    found = [path.parent for path in (folder / "runs" / cell.name).glob("[!.]*/config.yaml")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def cell_is_finished(folder: Path, cell: SweepCell) -> bool:
    """Whether the cell needs no further run."""
    return any(run_folder.is_finished(run) for run in run_folders(folder, cell))
