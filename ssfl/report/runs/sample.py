"""Invented runs, to view plots and tables without training. No number in them was measured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAYERS = (
    "conv1",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
    "layer3.0.conv1",
    "fc",
)
CLIENTS, COHORT, PARAMETERS = 100, 10, 250_000
METHODS = {"ssfl": "SSFL", "fedavg": "FedAvg"}
UNREAD: Mapping[str, list[str]] = {"ssfl": [], "fedavg": ["model.dense_ratio"]}


def write_sample_run(
    folder: Path,
    algorithm: str = "ssfl",
    density: float = 0.5,
    seed: int = 0,
    rounds: int = 50,
    stop_after: int | None = None,
) -> Path:
    """A run folder with config.yaml and metrics.jsonl, in the format of docs/metrics.md. Returns `folder`.

    Args:
        folder: created, with its parent folders.
        algorithm: ssfl | fedavg.
        density: share kept; not read for fedavg.
        seed: of the noise in the invented accuracies.
        rounds: configured training rounds.
        stop_after: the run was killed after this round; None: it finished.
    """
    draw = random.Random(f"{algorithm} {density} {seed}")
    kept = 1.0 if algorithm == "fedavg" else density
    rows = [_started(algorithm, density, seed, rounds)]
    if algorithm == "ssfl":
        rows.append(_scoring(kept))
    rows += [_round(number, kept, draw) for number in range(1, (stop_after or rounds) + 1)]
    if stop_after is None:
        rows.append(_finished(rows, rounds))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_config(algorithm, density, seed, rounds), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _config(algorithm: str, density: float, seed: int, rounds: int) -> str:
    return (
        f"algorithm: {{name: {algorithm}, params: {{mode: static}}}}\n"
        f"model: {{dense_ratio: {density}}}\n"
        f"training: {{comm_round: {rounds}}}\n"
        f"experiment: {{seed: {seed}}}\n"
    )


def _started(algorithm: str, density: float, seed: int, rounds: int) -> dict[str, Any]:
    names = {"algorithm": algorithm, "method": METHODS[algorithm], "model": "sample", "dataset": "sample"}
    sizes = {"clients": CLIENTS, "cohort": COHORT, "rounds": rounds, "dense_bytes": 4 * PARAMETERS}
    rest = {"parameters": PARAMETERS, "prunable_parameters": PARAMETERS, "density": density, "seed": seed}
    return {
        "event": "run_started",
        "time_utc": "2026-01-01T00:00:00Z",
        **names,
        **sizes,
        **rest,
        "unread_keys": UNREAD[algorithm],
    }


def _scoring(kept: float) -> dict[str, Any]:
    shares = {name: min(1.0, kept * (1.6 - 0.2 * i)) for i, name in enumerate(LAYERS)}
    if kept < 0.1:
        shares["layer3.0.conv1"] = 0.0
    bytes_one_way = 4 * PARAMETERS * CLIENTS
    return {
        **_exchange("score", 0, CLIENTS, bytes_one_way, 0.0, kept),
        "event": "phase",
        "train_loss_last_epoch": None,
        "train_loss_all_epochs": None,
        "layer_density": shares,
        "empty_layers": [name for name, share in shares.items() if share == 0],
    }


def _round(number: int, kept: float, draw: random.Random) -> dict[str, Any]:
    reached = (0.78 + 0.05 * math.log10(kept)) * (1 - math.exp(-number / 12))
    accuracy = 0.1 + reached + draw.gauss(0, 0.008)
    clients = [min(1.0, max(0.0, accuracy + 0.03 + draw.gauss(0, 0.07))) for _ in range(CLIENTS)]
    mean = sum(clients) / CLIENTS
    return {
        **_exchange("train", number, COHORT, int(4 * PARAMETERS * COHORT * kept), 4e11 * kept, kept),
        "event": "round",
        "train_loss_last_epoch": 2.3 * math.exp(-number / 15),
        "train_loss_all_epochs": 2.4 * math.exp(-number / 15),
        "global_accuracy": accuracy,
        "global_loss": 2.3 * math.exp(-number / 20),
        "client_accuracy_mean": mean,
        "client_accuracy_std": math.sqrt(sum((value - mean) ** 2 for value in clients) / CLIENTS),
        "client_accuracy": clients,
    }


def _exchange(
    phase: str, number: int, clients: int, one_way: int, flops: float, kept: float
) -> dict[str, Any]:
    moved = {"downlink_bytes": one_way, "uplink_bytes": one_way, "train_flops": flops}
    return {
        "phase": phase,
        "round": number,
        "clients": clients,
        **moved,
        "wall_seconds": 1.5,
        "density": kept,
    }


def _finished(rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    last: Mapping[str, Any] = rows[-1]
    names = ("global_accuracy", "client_accuracy_mean", "client_accuracy_std")
    dense = 4 * PARAMETERS * COHORT * rounds
    down = sum(row.get("downlink_bytes", 0) for row in rows)
    totals = {"total_downlink_bytes": down, "total_uplink_bytes": down, "bytes_ratio": dense / down}
    fedavg = {"fedavg_downlink_bytes": dense, "fedavg_uplink_bytes": dense}
    return {
        "event": "run_finished",
        "rounds": rounds,
        **{name: last[name] for name in names},
        **totals,
        **fedavg,
        "total_train_flops": sum(row.get("train_flops", 0) for row in rows),
        "wall_seconds": 1.5 * len(rows),
    }
