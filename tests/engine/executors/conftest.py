"""Fixtures of the executors' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ssfl.engine.executors import timing


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two steps per form are enough to test a measurement; it may change PyTorch's threads."""
    monkeypatch.setattr(timing, "STEPS", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
