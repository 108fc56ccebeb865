"""Show a run from another process: its status, metrics.jsonl and summary; from another machine, its log."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ssfl.deploy.errors import DeployError, UnreachableError
from ssfl.deploy.server.run_record import REFUSALS, RunRecord, load_records
from ssfl.report.runs import load_run
from ssfl.report.tables.summary import summary_text
from ssfl.tracking.console import ConsoleProgress

if TYPE_CHECKING:  # so that this module needs no Flower
    from ssfl.deploy.transport.control import Control

POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0
"""Between two attempts to reach a server that does not answer."""


def follow(
    home: Path, flower_run: str, console: str, check_processes: Callable[[bool], None], seconds: float = 0.0
) -> int:
    """Show a run until it ends. Returns the exit code: 0 if finished, else 1.

    check_processes: called at every poll, with whether the run's record exists.
    """
    end = time.monotonic() + seconds if seconds else float("inf")
    shown: Shown | None = None
    run = reported = ""
    while time.monotonic() < end:
        record = _record(home, run, flower_run)
        check_processes(record is not None)
        if record is not None:
            run = record.run
            if record.status == "waiting" and record.reason not in ("", reported):
                reported = record.reason
                print(f"ssfl: waiting; {reported}", file=sys.stderr, flush=True)
            if shown is None and record.folder:
                shown = Shown(Path(record.folder), console, record.rounds)
            if shown is not None:
                shown.more()
            if not record.active:
                return _end(record, shown)
        time.sleep(POLL_SECONDS)
    if shown is not None:
        shown.close()
    print(f"ssfl: the run did not end within {seconds:g} s", file=sys.stderr)
    return 1


def follow_log(control: Control, flower_run: str, retry_seconds: float = RETRY_SECONDS) -> int:
    """Print the log of a run on another machine, with its summary, until it ends. Returns the exit code: 0 if finished.

    Raises DeployError if the server no longer knows the run.
    """
    after, status, reported = 0.0, "", False
    while not status.startswith("finished"):
        try:
            for text, written in control.logs(flower_run, after):
                print(text, end="", flush=True)
                after = written
            status = control.runs().get(flower_run, "")
            reported = False
        except UnreachableError as error:
            if not reported:
                print(f"ssfl: {error}; trying again", file=sys.stderr)
            reported = True
            time.sleep(retry_seconds)
        except DeployError as error:
            raise DeployError(f"{error}; `ssfl deploy status` on the server shows its runs") from None
    if status == "finished:completed":
        return 0
    print(f"ssfl: Flower run {flower_run} ended: {status}; see its log above", file=sys.stderr)
    return 1


def _record(home: Path, run: str, flower_run: str) -> RunRecord | None:
    """The run's record: by its name if that is known, because Flower gives a resumed run another id."""
    for record in reversed(load_records(home)):
        if record.run == run or (not run and record.flower_run == flower_run):
            return record
    refused = [r for r in load_records(home, REFUSALS) if r.flower_run == flower_run]
    return refused[-1] if refused else None


class Shown:
    """Shows the lines of metrics.jsonl on the console as they are written."""

    def __init__(self, folder: Path, console: str, rounds: int) -> None:
        mode = "rich" if console == "auto" else console
        self._path = folder / "metrics.jsonl"
        self._console = ConsoleProgress(mode, rounds, sys.stdout if mode == "json" else sys.stderr)
        self._at = 0

    def more(self) -> None:
        """Show the new lines; a resume truncates the file to the last checkpoint, after which it grows again."""
        if not self._path.is_file():
            return
        raw = self._path.read_bytes()
        # In a file that was truncated and has grown, the start of a line.
        self._at = raw.rfind(b"\n", 0, self._at) + 1
        lines = raw[self._at : raw.rfind(b"\n") + 1]
        self._at += len(lines)
        for line in lines.splitlines():
            self._console.record(json.loads(line))

    def close(self) -> None:
        self._console.close()


def _end(record: RunRecord, shown: Shown | None) -> int:
    if shown is not None:
        shown.more()
        shown.close()
    if record.status == "finished":
        print(summary_text(load_run(Path(record.folder))))
        return 0
    if record.status == "refused":
        print(f"ssfl: the run was not resumed: {record.reason}", file=sys.stderr)
        return 1
    print(f"ssfl: the run {record.status}: {record.reason}", file=sys.stderr)
    if record.folder:
        print(f"continue with: ssfl deploy run --resume {shlex.quote(str(record.folder))}", file=sys.stderr)
    return 1
