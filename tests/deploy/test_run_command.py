"""`ssfl deploy run`: a run that ended before it wrote a record, and a run on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.cli import main
from ssfl.deploy.commands.follow import Shown, follow_log
from ssfl.deploy.commands.run import StartWatch
from ssfl.deploy.errors import DeployError, UnreachableError
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


def test_a_run_that_a_restarted_server_does_not_know_is_an_error(tmp_path: Path) -> None:
    """Its SuperLink died before the run's process wrote a record: nobody would start it again."""
    control = FakeControl()
    watch = StartWatch(cast(Control, control), "6", tmp_path, seconds=0.0)
    control.status = None
    watch(False)  # the SuperLink is away
    control.status = "running"  # of another run
    watch(True)
    watch(False)
    with pytest.raises(DeployError, match="Flower run 6: the server was restarted before the run began"):
        watch(False)


class LoggingControl:
    """A server whose link fails once after each line of the log, and which ends the run with a status."""

    def __init__(self, lines: list[str], status: str) -> None:
        self.lines, self.status = lines, status

    def logs(self, flower_run: str, after: float) -> Iterator[tuple[str, float]]:
        for number, line in enumerate(self.lines, 1):
            if number > after:
                yield line, float(number)
                raise UnreachableError("fl:1: cannot be reached")

    def runs(self) -> dict[str, str]:
        return {"5": self.status}


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1)])
def test_the_log_of_a_run_elsewhere_is_shown_once(
    status: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    control = LoggingControl(["round 1\n", "round 2\n", "summary\n"], status)
    assert follow_log(cast(Control, control), "5", retry_seconds=0.0) == code
    out, err = capsys.readouterr()
    assert out == "round 1\nround 2\nsummary\n"
    lines = ["ssfl: fl:1: cannot be reached; trying again"]
    lines += ["ssfl: Flower run 5 ended: finished:failed; see its log above"] if code else []
    assert err.splitlines() == lines


def test_a_run_that_a_restarted_server_does_not_know_is_one_line() -> None:
    class Restarted(LoggingControl):
        def logs(self, flower_run: str, after: float) -> Iterator[tuple[str, float]]:
            raise DeployError("fl:1: StreamLogs was refused: [1] Run 5 not found")
            yield

    with pytest.raises(
        DeployError, match="Run 5 not found; `ssfl deploy status` on the server shows its runs"
    ):
        follow_log(cast(Control, Restarted([], "")), "5")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--superlink", "fl:1", "--resume", "outputs/run"],
            "the absolute path of the run folder on the server",
        ),
        (
            ["--superlink", "fl:1", "--root-certificates", "none.crt"],
            "none.crt: No such file or directory; it must be the ca.crt",
        ),
        (["--superlink", "fl"], "must be HOST:PORT"),
        (["--resume", "outputs/run", "algorithm=ssfl"], "--resume takes no KEY=VALUE"),
        (["deploy.quorom=1"], "did you mean deploy.quorum"),
        (["--folder", "nowhere"], "nowhere: is not a server"),
    ],
)
def test_bad_arguments_are_one_line(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_lines_of_a_file_that_was_truncated_and_has_grown_are_shown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(number: int, more: str = "") -> str:
        return json.dumps({"event": "round", "phase": "train", "round": number, "more": more}) + "\n"

    shown, path = Shown(tmp_path, "json", 9), tmp_path / "metrics.jsonl"
    shown.more()  # the file does not exist yet
    path.write_text(line(0) + line(1))
    shown.more()
    path.write_text(line(0) + line(1, "longer")[:-5])
    shown.more()
    path.write_text(line(0) + line(1, "longer") + line(2)[:7])
    shown.more()
    path.write_text(line(0) + line(1, "longer") + line(2))
    shown.more()
    printed = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [(p["round"], p["more"]) for p in printed] == [(0, ""), (1, ""), (1, "longer"), (2, "")]
