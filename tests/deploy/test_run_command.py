"""`ssfl deploy run` ends when its run has ended before it wrote a record."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.commands.run import StartWatch
from ssfl.deploy.errors import DeployError
from ssfl.deploy.transport.control import Control


class FakeControl:
    """Answers with one status; None: the SuperLink is away."""

    def __init__(self) -> None:
        self.status: str | None = "running"

    def runs(self) -> dict[str, str]:
        if self.status is None:
            raise DeployError("away")
        return {"5": self.status}


def test_a_run_that_ended_without_a_record_is_an_error(tmp_path: Path) -> None:
    control = FakeControl()
    watch = StartWatch(cast(Control, control), "5", tmp_path, seconds=0.0)
    for status in ("running", None, "running"):
        control.status = status
        watch(False)
    control.status = "finished:failed"
    watch(True)
    watch(False)  # the record may appear in between
    with pytest.raises(DeployError, match="Flower run 5 ended before it began"):
        watch(False)
