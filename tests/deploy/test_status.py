"""`ssfl deploy status` and `stop` without a SuperLink: what it answers, and what happens in between."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.commands import status
from ssfl.deploy.errors import DeployError, UnreachableError
from ssfl.deploy.server.run_record import RunRecord, load_records, save_record
from ssfl.deploy.transport.control import NodeState


@dataclass
class FakeControl:
    """A SuperLink whose run 1 has ended; `asked` is called before it answers."""

    asked: Callable[[], object]

    def nodes(self) -> tuple[NodeState, ...]:
        self.asked()
        return ()

    def runs(self) -> dict[str, str]:
        self.asked()
        return {"1": "finished:completed"}

    def stop(self, flower_run: str) -> None:
        raise DeployError(f"StopRun was refused: run {flower_run} has ended")


def answer_with(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "control_of", lambda folder: contextlib.nullcontext(control))


def test_a_run_that_finishes_while_it_is_stopped_stays_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_record(tmp_path, RunRecord("run-1", (), status="running", flower_run="1"))
    finished = RunRecord("run-1", (), status="finished", flower_run="1")
    answer_with(FakeControl(lambda: save_record(tmp_path, finished)), monkeypatch)
    with pytest.raises(DeployError, match="run 1 has ended"):
        status.stop_run(argparse.Namespace(run="run-1", folder=tmp_path))
    assert [record.status for record in load_records(tmp_path)] == ["finished"]


@pytest.mark.parametrize(
    ("error", "shown", "remedy"),
    [
        (UnreachableError("fl:1: cannot be reached"), "down: fl:1: cannot be reached; start it: ssfl", True),
        (
            DeployError("fl:1: ListNodes was refused: [9] x"),
            "refusing: fl:1: ListNodes was refused: [9] x",
            False,
        ),
    ],
)
def test_a_superlink_that_refuses_is_not_down(
    error: DeployError,
    shown: str,
    remedy: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise error

    answer_with(FakeControl(refuse), monkeypatch)
    assert status.show_status(argparse.Namespace(folder=tmp_path, json=False)) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"ssfl: the SuperLink is {shown}")
    assert ("start it" in line) == remedy
    assert captured.out.splitlines()[0] == f"SuperLink: {shown.partition(':')[0]}"
