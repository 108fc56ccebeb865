"""What to call a run: its method, its density, and the settings in which it differs from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ssfl.report.runs import Run

NAMES = {
    "ssfl": "SSFL",
    "fedavg": "FedAvg",
    "fedavg_ft": "FedAvg-FT",
    "dispfl": "DisPFL",
    "sparsyfed": "SparsyFed",
    "local": "local training",
}

_TOLD_ELSEWHERE = (
    "algorithm.name",
    "algorithm.ignores",
    "algorithm.params.mode",
    "model.dense_ratio",
    "experiment.*",
    "engine.*",
    "checkpoint.*",
    "tracking.*",
    "wandb.*",
    "dataset.data_dir",
    "training.max_workers",
)
"""Keys that a label names by itself, and keys that change no number."""
_TOLD_HERE = ("engine.precision",)
"""Of those, the keys that do: runs in bf16 are no repetitions of runs in fp32."""


def method(run: Run) -> str:
    """The method as its paper writes it; for SSFL's random masks, where the mask comes from."""
    name = str(run.started.get("algorithm") or run.setting("algorithm.name", "unknown method"))
    mode = str(run.started.get("mode") or run.setting("algorithm.params.mode", "static"))
    if name == "ssfl" and mode != "static":
        return mode.replace("_", " ") + " mask"
    return NAMES.get(name, name)


def density(run: Run) -> float | None:
    """Share of the prunable weights that the run keeps (0-1): 1 for methods that read no density."""
    if _ignores(run, "model.dense_ratio"):
        return 1.0
    value = run.started.get("density", run.setting("model.dense_ratio"))
    return None if value is None else float(value)


def seed(run: Run) -> int | None:
    """`experiment.seed`."""
    value = run.started.get("seed", run.setting("experiment.seed"))
    return None if value is None else int(value)


def labels(runs: Sequence[Run], with_density: bool = True) -> list[str]:
    """One label a run, without its seed: runs with equal labels are repetitions of one setting.

    Method, density unless it is 1 (or `with_density` is off), and every further setting in which these runs
    differ from each other.
    """
    flat = [_flatten(run.config) for run in runs]
    every = {key for config in flat for key in config}
    keys = sorted(key for key in every if key in _TOLD_HERE or not _matches(key, _TOLD_ELSEWHERE))
    differ = [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]
    return [_label(run, config, differ, with_density) for run, config in zip(runs, flat)]


def _label(run: Run, config: Mapping[str, Any], differ: Sequence[str], with_density: bool) -> str:
    kept = density(run) if with_density else None
    parts = [method(run)] + ([f"density {kept:g}"] if kept is not None and kept != 1 else [])
    parts += [
        f"{key.rpartition('.')[2]}={config[key]}"
        for key in differ
        if key in config and not _ignores(run, key)
    ]
    return ", ".join(parts)


def _ignores(run: Run, key: str) -> bool:
    return _matches(key, run.setting("algorithm.ignores") or ())


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _flatten(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat
