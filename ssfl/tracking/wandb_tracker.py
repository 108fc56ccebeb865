"""Weights & Biases, imported only when a run asks for it."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import yaml

from ssfl.tracking.numbers import scalars
from ssfl.tracking.observer import TrackingError

_ID_FILE = "wandb-id.txt"


@final
class WandbTracker:
    """Sends every scalar of every exchange to wandb, over the round.

    A run that is resumed goes on in the same wandb run: its id is kept in the run folder.

    Args:
        mode: online | offline (written under FOLDER/wandb; `wandb sync` sends it later) | disabled.
        project: the project at wandb.
        name: the run's name there.
        folder: the run folder; its config.yaml becomes the run's configuration.

    Raises:
        TrackingError: wandb is not installed, or does not start (not logged in, no network).
    """

    def __init__(self, mode: str, project: str, name: str, folder: Path) -> None:
        require_wandb()
        wandb = importlib.import_module("wandb")
        settings: dict[str, Any] = {
            "project": project,
            "name": name,
            "mode": mode,
            "dir": str(folder),
            "config": _config(folder),
            "id": _run_id(folder),
            "resume": "allow",
        }
        try:
            self._run = wandb.init(**settings)
        except wandb.Error as error:
            raise TrackingError(
                f"wandb.mode={mode}: wandb does not start ({' '.join(str(error).split())}); "
                "run `wandb login` first, or use wandb.mode=offline"
            ) from None
        # Over the round, not wandb's own step: after a resume the rounds since the checkpoint come again.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def record(self, event: Mapping[str, Any]) -> None:
        """Log an exchange's scalars; put the totals of the end into the run's summary."""
        kind = event["event"]
        if kind in ("round", "phase"):
            prefix = "" if kind == "round" else f"{event['phase']}/"
            named = {f"{prefix}{name}": value for name, value in scalars(event).items()}
            self._run.log(named | {"round": event["round"]})
        elif kind == "run_finished":
            for name, value in scalars(event).items():
                self._run.summary[name] = value

    def close(self) -> None:
        """Hand over what is still under way."""
        self._run.finish()


def require_wandb() -> None:
    """TrackingError, one line, where wandb is not installed."""
    try:
        importlib.import_module("wandb")
    except ImportError:
        raise TrackingError(
            "wandb.mode: wandb is not installed; pip install 'ssfl[wandb]', or use wandb.mode=disabled"
        ) from None


def _run_id(folder: Path) -> str:
    path = folder / _ID_FILE
    if not path.is_file():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _config(folder: Path) -> Any:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
