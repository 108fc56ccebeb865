"""Writes the events of a run to a file, the console, wandb and TensorBoard. docs/metrics.md lists the events."""

from ssfl.tracking.choose import check_trackers, trackers_of
from ssfl.tracking.console import ConsoleProgress
from ssfl.tracking.jsonl import JsonlWriter
from ssfl.tracking.observer import Broadcast, Observer, TrackingError
from ssfl.tracking.tensorboard_tracker import TensorBoardTracker
from ssfl.tracking.wandb_tracker import WandbTracker

__all__ = [
    "Broadcast",
    "ConsoleProgress",
    "JsonlWriter",
    "Observer",
    "TensorBoardTracker",
    "TrackingError",
    "WandbTracker",
    "check_trackers",
    "trackers_of",
]
