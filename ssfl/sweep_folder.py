"""A sweep's folder: `sweep.json` (the cells), `runs/NAME/TIME` (run folders) and `logs/NAME.txt`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ssfl.config import Config, ConfigError
from ssfl.sweep_cells import SweepCell

CELLS = "sweep.json"


def new_folder(config: Config) -> Path:
    """OUTPUT_DIR/EXP_NAME/sweep-TIME, made."""
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


def this_folder(folder: Path, words: Sequence[str]) -> Path:
    """The folder that was asked for: made, or already that of the same sweep; else ConfigError."""
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


def write_cells(folder: Path, words: Sequence[str], cells: Sequence[SweepCell]) -> None:
    """What a resume reads."""
    text = json.dumps({"words": list(words), "cells": [asdict(cell) for cell in cells]}, indent=1)
    (folder / CELLS).write_text(text + "\n", encoding="utf-8")


def read_cells(folder: Path) -> list[SweepCell]:
    """The cells of a sweep's folder; ConfigError when it is none."""
    try:
        stored = json.loads((folder / CELLS).read_text(encoding="utf-8"))
        return [SweepCell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in stored["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("--resume", f"{folder}: no readable {CELLS} there ({error})") from None


def log_of(folder: Path, cell: SweepCell) -> Path:
    """What the cell's processes print."""
    return folder / "logs" / f"{cell.name}.txt"


def run_folders(folder: Path, cell: SweepCell) -> list[Path]:
    """Run folders of a cell, oldest first."""
    found = [path.parent for path in (folder / "runs" / cell.name).glob("[!.]*/config.yaml")]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def run_is_finished(run: Path) -> bool:
    """Whether a run folder's run has ended."""
    # Written last, and atomically; the second by methods without a global model.
    return any((run / name).exists() for name in ("model.safetensors", "client_models.safetensors"))


def is_finished(folder: Path, cell: SweepCell) -> bool:
    """Whether the cell needs no further run."""
    return any(run_is_finished(run) for run in run_folders(folder, cell))
