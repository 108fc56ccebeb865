"""Labels of runs: method, density, and the settings in which a run differs from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ssfl.report.runs.run import Run

_LEFT_OUT = (
    "algorithm.name",
    "algorithm.params.mode",
    "model.dense_ratio",
    "experiment.*",
    "engine.*",
    "checkpoint.*",
    "communication.measure",
    "communication.link_*",
    "tracking.*",
    "wandb.*",
    "dataset.data_dir",
    "training.max_workers",
)
"""Keys that are not listed as differences: a label always has them, or they do not change numbers."""
_BUT_SHOWN = ("engine.precision",)
"""Exceptions, which change numbers: runs in bf16 are not repetitions of runs in fp32."""
CODE = "code"
"""Used in labels like a key if runs have different code versions."""


def method(run: Run) -> str:
    """The method as its paper writes it, from the run's first event; without events, as in its configuration."""
    if known := run.started.get("method"):
        return str(known)
    name, mode = run.setting("algorithm.name", "unknown method"), run.setting("algorithm.params.mode")
    return str(name) if mode is None else f"{name} ({mode})"


def density(run: Run) -> float | None:
    """Share of the prunable weights that the run keeps (0-1); 1 for methods without a density."""
    if _has_no_effect(run, "model.dense_ratio"):
        return 1.0
    value = run.started.get("density", run.setting("model.dense_ratio"))
    return None if value is None else float(value)


def seed(run: Run) -> int | None:
    """`experiment.seed`."""
    value = run.started.get("seed", run.setting("experiment.seed"))
    return None if value is None else int(value)


def code_of(run: Run) -> str:
    """The run's code version, or `unknown`."""
    return run.code or "unknown"


def labels(
    runs: Sequence[Run], with_density: bool = True, codes: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """One label per run, without its seed: runs with equal labels are repetitions of one setting.

    A label has the method, the density (unless it is 1 or `with_density` is False), and all other settings in which
    these runs differ. codes: the code versions that each label stands for; None: that of the run itself.
    """
    versions = codes or [(code_of(run),) for run in runs]
    flat = [
        {**_flatten(run.config), CODE: " and ".join(own)} for run, own in zip(runs, versions, strict=True)
    ]
    every = {key for config in flat for key in config}
    keys = sorted(key for key in every if key in _BUT_SHOWN or not _matches(key, _LEFT_OUT))
    differ = [key for key in keys if len({repr(v) for v in _values(flat, key)}) > 1]
    return [_label(run, config, differ, with_density) for run, config in zip(runs, flat)]


def recipe(run: Run) -> dict[str, Any]:
    """The settings of data, network and training that a run reads, without its learning rate."""
    return {
        key: value
        for key, value in _flatten(run.config).items()
        if key.startswith(("dataset.", "model.", "optimizer.", "training."))
        and key != "optimizer.lr"
        and not _matches(key, _LEFT_OUT)
        and not _has_no_effect(run, key)
    }


def _values(flat: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """A key's values in these runs; a key that a method or an old run lacks is not a difference."""
    may_lack = key.startswith(("algorithm.params.", "communication."))
    return [config.get(key) for config in flat if key in config or not may_lack]


def _label(run: Run, config: Mapping[str, Any], differ: Sequence[str], with_density: bool) -> str:
    kept = density(run) if with_density else None
    parts = [method(run)] + ([f"density {kept:g}"] if kept is not None and kept != 1 else [])
    parts += [
        f"{key.rpartition('.')[2]}={config[key]}"
        for key in differ
        if key in config and not _has_no_effect(run, key)
    ]
    return ", ".join(parts)


def _has_no_effect(run: Run, key: str) -> bool:
    return _matches(key, run.started.get("unread_keys") or ())


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
