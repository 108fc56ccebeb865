"""Weights & Biases; imported only if it is used."""

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
    """Sends every scalar of every exchange to wandb, with the round as x-axis.

    A resumed run continues the same wandb run; the run folder keeps its id.

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
        # Plot over rounds, not wandb's steps: after a resume the rounds since the checkpoint are repeated.
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def record(self, event: Mapping[str, Any]) -> None:
        """Log an exchange's scalars; add the final totals to the run's summary."""
        kind = event["event"]
        if kind in ("round", "phase"):
            prefix = "" if kind == "round" else f"{event['phase']}/"
            named = {f"{prefix}{name}": value for name, value in scalars(event).items()}
            self._run.log(named | {"round": event["round"]})
        elif kind == "run_finished":
            found = scalars(event)
            # wandb sorts its summary by name: these two names come first.
            first = {"accuracy_global": "global_accuracy", "accuracy_clients": "client_accuracy_mean"}
            named = {name: found[source] for name, source in first.items() if source in found}
            for name, value in (named | found).items():
                self._run.summary[name] = value

    def close(self) -> None:
        """Upload remaining data and end the wandb run."""
        self._run.finish()


def require_wandb() -> None:
    """Raises TrackingError if wandb is not installed."""
    try:
        importlib.import_module("wandb")
    except ImportError:
        raise TrackingError(
            "wandb.mode: wandb is not installed; bash setup.sh --with=wandb, or use wandb.mode=disabled"
        ) from None


def _run_id(folder: Path) -> str:
    path = folder / _ID_FILE
    if not path.is_file():
        path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _config(folder: Path) -> Any:
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
