"""Cells whose results exist already, in other folders or in packed results; they need no further run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from ssfl.config import Config, ConfigError, config_from_yaml, deciding_values
from ssfl.report.runs import RunError
from ssfl.report.runs.compact import all_runs
from ssfl.report.runs.labels import code_of

Values = Mapping[str, Any]
"""The keys that a run's numbers depend on, with their values."""


@final
@dataclass(frozen=True)
class Finished:
    """The finished runs of a folder or a packed file."""

    settings: tuple[Values, ...]
    codes: tuple[str, ...]
    """Their code versions."""


def finished_runs(path: Path) -> Finished:
    """Settings and code versions of the finished runs in a folder or a packed file.

    A run whose configuration this version cannot read is not among them. Raises ConfigError when there is no run.
    """
    if not path.exists():
        raise ConfigError("--skip-finished", f"{path}: does not exist; name a folder of runs or a runs.json")
    try:
        runs = [run for run in all_runs([path]) if run.finished]
    except RunError as error:
        raise ConfigError("--skip-finished", str(error)) from None
    settings = tuple(values for run in runs if (values := _values(run.config)) is not None)
    return Finished(settings, tuple(dict.fromkeys(map(code_of, runs))))


def _values(config: Mapping[str, Any]) -> Values | None:
    try:
        return deciding_values(config_from_yaml(yaml.safe_dump(dict(config))))
    except ConfigError:
        return None


def has_results(config: Config, finished: Sequence[Values]) -> bool:
    """Whether a finished run has this configuration; `auto` equals any value, because a run records what was chosen."""
    asked = {key: value for key, value in deciding_values(config).items() if value != "auto"}
    return any(all(key in run and run[key] == value for key, value in asked.items()) for run in finished)
