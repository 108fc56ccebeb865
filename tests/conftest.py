"""One thread, so that times and sums repeat; a wide terminal; hypothesis draws the same cases in every run."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
os.environ["COLUMNS"] = "200"  # pytest-xdist sets 80, and tables wrap
settings.register_profile(
    "repeatable",
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("repeatable")


LONG_FOLDERS = ("survival", "deploy", "sweep", "distributed")


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order of the files; by default it sorts them by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that parallel workers end at about the same time."""
    items.sort(key=lambda item: not any(folder in item.path.parts for folder in LONG_FOLDERS))
