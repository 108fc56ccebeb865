"""TensorBoard; imported only if it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ssfl.tracking.numbers import scalars
from ssfl.tracking.observer import TrackingError


@final
class TensorBoardTracker:
    """Writes every scalar of every exchange, with the round as step, for `tensorboard --logdir FOLDER`.

    Args:
        folder: folder of the event files.

    Raises:
        TrackingError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require_tensorboard()
        self._folder = folder
        self._writer: Any = None

    def record(self, event: Mapping[str, Any]) -> None:
        """Write an exchange's scalars. A `resumed` event hides those of rounds that are repeated."""
        kind = event["event"]
        if kind == "resumed":
            self._open(purge_step=event["round"] + 1)
        elif kind in ("round", "phase"):
            writer = self._writer or self._open(purge_step=None)
            group = "round" if kind == "round" else event["phase"]
            for name, value in scalars(event).items():
                writer.add_scalar(f"{group}/{name}", value, event["round"])
            writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        self.close()
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(self._folder), purge_step=purge_step)
        return self._writer


def require_tensorboard() -> None:
    """Raises TrackingError if tensorboard is not installed."""
    try:
        importlib.import_module("tensorboard")
    except ImportError:
        raise TrackingError(
            "tracking.tensorboard=true: tensorboard is not installed; bash setup.sh --with=tensorboard, "
            "or use tracking.tensorboard=false"
        ) from None
