"""An invented sweep for tests of results: real files, invented curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "ssfl": {"algorithm": {"name": "ssfl", "params": {"mode": "static"}}, "model": {"dense_ratio": 0.5}},
    "random": {
        "algorithm": {"name": "ssfl", "params": {"mode": "random_global"}},
        "model": {"dense_ratio": 0.5},
    },
    "fedavg_ft": {
        "algorithm": {"name": "fedavg_ft", "params": {"mode": "static"}},
        "model": {"dense_ratio": 0.5},
    },
}
STARTED: Mapping[str, Mapping[str, Any]] = {
    "ssfl": {"method": "SSFL", "unread_keys": []},
    "random": {"method": "random global mask", "unread_keys": []},
    "fedavg_ft": {"method": "FedAvg-FT", "unread_keys": ["model.dense_ratio"]},
}
"""The fields of a method in the first event of a run."""
CODE = {
    "version": "0.1.0",
    "sources": "0123456789abcdef",
    "commit": "c0ffee",
    "modified": False,
    "kernels": None,
}


def write_run(
    folder: Path,
    setting: str,
    seed: int,
    curve: Sequence[float],
    fine_tuned: float | None = None,
    finished: bool = True,
    code: Mapping[str, Any] | None = CODE,
    **more: Any,
) -> Path:
    """A run that was evaluated every second round: `curve` has its global accuracies (0-1); clients have 0.1 more."""
    folder.mkdir(parents=True)
    config = {
        **SETTINGS[setting],
        "experiment": {"seed": seed},
        "dataset": {"data_dir": "/home/me/data"},
        **more,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    environment = {
        "instruction_set": "AVX512",
        "command": ["/home/me/bin/ssfl", "run", "dataset.data_dir=/home/me/data"],
    }
    (folder / "environment.json").write_text(
        json.dumps(environment | ({} if code is None else {"code": code}))
    )
    name = config["algorithm"]["name"]
    rows: list[dict[str, Any]] = [
        {"event": "run_started", "algorithm": name, **STARTED[setting], "density": 0.5, "seed": seed,
         "rounds": 2 * len(curve), "cohort": 2, "dense_bytes": 1000, "version": "0.1.0"}
    ]  # fmt: skip
    if setting == "ssfl":
        rows.append(
            {
                **exchange("phase", "score", 0, 40_000),
                "layer_density": {"a": 0.75, "b": 0.25},
                "empty_layers": [],
            }
        )
    for number in range(1, 2 * len(curve) + 1):
        row = exchange("round", "train", number, 1000)
        if number % 2 == 0:
            row |= evaluation(curve[number // 2 - 1])
        rows.append(row)
    if fine_tuned is not None:
        row = exchange("phase", "fine_tune", 2 * len(curve), 7000)
        rows.append(row | evaluation(curve[-1]) | {"client_accuracy_mean": fine_tuned})
    if finished:
        rows.append(
            {
                "event": "run_finished",
                "rounds": 2 * len(curve),
                "wall_seconds": 12.0,
                "global_accuracy": curve[-1],
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def exchange(event: str, phase: str, number: int, sent: int) -> dict[str, Any]:
    return {"event": event, "phase": phase, "round": number, "clients": 2, "downlink_bytes": sent, "uplink_bytes": sent,
            "train_flops": 5e9, "wall_seconds": 0.5, "training_seconds": 0.4, "density": 0.5}  # fmt: skip


def evaluation(accuracy: float) -> dict[str, Any]:
    """The fields of an evaluation in a row."""
    return {
        "global_accuracy": accuracy,
        "global_loss": 1.0,
        "global_class_accuracy": [accuracy] * 3,
        "client_accuracy_mean": accuracy + 0.1,
        "client_accuracy_std": 0.05,
        "client_accuracy": [accuracy] * 4,
    }


def write_sweep(folder: Path, runs: Sequence[tuple[str, int, Sequence[float]]], **more: Any) -> Path:
    """A sweep of (setting, seed, curve)."""
    cells = []
    for setting, seed, curve in runs:
        name = f"{setting}_s{seed}"
        words = ["dataset.data_dir=/home/me/data", f"algorithm={setting}", f"experiment.seed={seed}"]
        cells.append(
            {
                "name": name,
                "label": f"algorithm={setting} experiment.seed={seed}",
                "overrides": words,
                "rounds": 2,
            }
        )
        if curve:
            tuned = 0.9 if setting == "fedavg_ft" else None
            write_run(folder / "runs" / name / "20300101-000000", setting, seed, curve, tuned, **more)
    (folder / "sweep.json").write_text(json.dumps({"words": ["algorithm=ssfl,fedavg_ft"], "cells": cells}))
    return folder
