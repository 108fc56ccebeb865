"""Cells whose results exist already, in other folders or in packed results; they need no further run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssfl.config import Config, ConfigError, config_from_yaml, deciding_values
from ssfl.report.runs import RunError
from ssfl.report.runs.compact import all_runs

Values = Mapping[str, Any]
"""The keys that a run's numbers depend on, with their values."""


def finished_settings(path: Path) -> list[Values]:
    """The settings of the finished runs in a folder or a packed file.

    A run whose configuration this version cannot read is not among them. Raises ConfigError when there is no run.
    """
    if not path.exists():
        raise ConfigError("--skip-finished", f"{path}: does not exist; name a folder of runs or a runs.json")
    try:
        runs = [run for run in all_runs([path]) if run.finished]
    except RunError as error:
        raise ConfigError("--skip-finished", str(error)) from None
    return [values for values in map(_values, (run.config for run in runs)) if values is not None]


def _values(config: Mapping[str, Any]) -> Values | None:
    try:
        return deciding_values(config_from_yaml(yaml.safe_dump(dict(config))))
    except ConfigError:
        return None


def has_results(config: Config, finished: Sequence[Values]) -> bool:
    """Whether a finished run has this configuration; `auto` equals any value, because a run records what was chosen."""
    asked = {key: value for key, value in deciding_values(config).items() if value != "auto"}
    return any(all(key in run and run[key] == value for key, value in asked.items()) for run in finished)
