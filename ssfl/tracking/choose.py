"""From settings to the observers that they ask for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ssfl.tracking.console import ConsoleProgress
from ssfl.tracking.observer import Observer
from ssfl.tracking.tensorboard_tracker import TensorBoardTracker, require_tensorboard
from ssfl.tracking.wandb_tracker import WandbTracker, require_wandb


class ConsoleSettings(Protocol):
    """The section `tracking` of the configuration."""

    @property
    def console(self) -> str: ...
    @property
    def tensorboard(self) -> bool: ...


class WandbSettings(Protocol):
    """The section `wandb` of the configuration."""

    @property
    def mode(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def exp_name(self) -> str: ...


class RoundSettings(Protocol):
    """What is read of the section `training`."""

    @property
    def comm_round(self) -> int: ...


class Settings(Protocol):
    """What is read of a configuration; `ssfl.config.Config` is one."""

    @property
    def tracking(self) -> ConsoleSettings: ...
    @property
    def wandb(self) -> WandbSettings: ...
    @property
    def training(self) -> RoundSettings: ...


def check_trackers(settings: Settings) -> None:
    """Whether the packages of the trackers asked for are there; to be called before anything is written.

    Raises:
        TrackingError: a package is missing.
    """
    if settings.tracking.tensorboard:
        require_tensorboard()
    if settings.wandb.mode != "disabled":
        require_wandb()


def trackers_of(settings: Settings, folder: Path, console: str | None = None) -> tuple[Observer, ...]:
    """The observers of a run besides its metrics.jsonl: console, TensorBoard, wandb.

    The console shows progress on stderr (so that stdout holds results only), JSON events on stdout.

    Args:
        settings: the run's configuration.
        folder: its run folder; rows that are there already (a resume) count into the bytes shown.
        console: overrides `tracking.console`.

    Raises:
        TrackingError: a tracker cannot be used; nothing is left open then.
    """
    check_trackers(settings)
    mode = console or settings.tracking.console
    mode = "rich" if mode == "auto" else mode
    stream = sys.stdout if mode == "json" else sys.stderr
    others: list[Observer] = []
    if settings.wandb.mode != "disabled":
        wandb = settings.wandb
        others.append(WandbTracker(wandb.mode, wandb.project, wandb.exp_name, folder))
    if settings.tracking.tensorboard:
        others.append(TensorBoardTracker(folder / "tensorboard"))
    past = _past(folder / "metrics.jsonl")
    # The bar takes the terminal over, so it is made last, and is the first to be told.
    return (ConsoleProgress(mode, settings.training.comm_round, stream, past), *others)


def _past(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
