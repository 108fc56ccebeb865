"""Creates the observers that the settings select."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ssfl.tracking.console import ConsoleProgress
from ssfl.tracking.jsonl import is_event
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
    """The fields of the section `training` that are read."""

    @property
    def comm_round(self) -> int: ...


class Settings(Protocol):
    """The fields of a configuration that are read; `ssfl.config.Config` has them."""

    @property
    def tracking(self) -> ConsoleSettings: ...
    @property
    def wandb(self) -> WandbSettings: ...
    @property
    def training(self) -> RoundSettings: ...


def check_trackers(settings: Settings) -> None:
    """Check that the packages of the selected trackers are installed; to be called before anything is written.

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
        folder: its run folder; existing rows (after a resume) are included in the bytes shown.
        console: overrides `tracking.console`.

    Raises:
        TrackingError: a tracker cannot be used.
    """
    check_trackers(settings)
    mode = console or settings.tracking.console
    mode = "rich" if mode == "auto" else mode
    stream = sys.stdout if mode == "json" else sys.stderr
    others: list[Observer] = []
    with ExitStack() as begun:
        if settings.wandb.mode != "disabled":
            wandb = settings.wandb
            others.append(WandbTracker(wandb.mode, wandb.project, wandb.exp_name, folder))
            begun.callback(others[-1].close)
        if settings.tracking.tensorboard:
            others.append(TensorBoardTracker(folder / "tensorboard"))
            begun.callback(others[-1].close)
        past = _past(folder / "metrics.jsonl")
        # The progress bar takes over the terminal, so it is made last and receives events first.
        console_progress = ConsoleProgress(mode, settings.training.comm_round, stream, past)
        begun.pop_all()
    return (console_progress, *others)


def _past(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if is_event(line)]
