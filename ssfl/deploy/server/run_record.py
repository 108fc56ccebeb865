"""The status of each run in the server's folder: one JSON file a run, for the supervisor and `ssfl deploy status`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ssfl.output import write_atomically

Status = Literal["waiting", "running", "finished", "stopped", "failed", "refused"]
"""waiting: for sites. stopped: by a user. failed: by an error; a user can resume it. refused: a resume was refused."""

RUNS, REFUSALS = "runs", "refusals"
"""Folders of records: of runs, and of attempts to resume a run that were refused and left it as it was."""

HOME_VARIABLE = "SSFL_DEPLOY_HOME"
"""Environment variable with the server's folder, for the processes that Flower starts."""
OPEN_VARIABLE = "SSFL_DEPLOY_OPEN"
"""Environment variable that is set if the server has no node keys (--insecure): every site registers itself."""


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    run: str
    words: tuple[str, ...]
    folder: str = ""
    """The run folder; empty until it is made."""
    status: Status = "waiting"
    round: int = 0
    rounds: int = 0
    pid: int = 0
    """The ServerApp's process."""
    flower_run: str = ""
    """Flower's id of the current attempt."""
    updated: float = 0.0
    """Unix time."""
    reason: str = ""
    sites: Mapping[str, Any] | None = None
    """Client -> {"examples": number of training examples, "live": whether it is connected}."""
    restarts: int = 0

    @property
    def active(self) -> bool:
        """Whether the run is in progress, or the supervisor is about to start it again."""
        return self.status in ("waiting", "running")


def home_folder() -> Path | None:
    """The server's folder, where one is set."""
    text = os.environ.get(HOME_VARIABLE, "")
    return Path(text) if text else None


def save_record(home: Path | None, record: RunRecord, folder: str = RUNS) -> RunRecord:
    """Write the record with the current time. A full disk is ignored."""
    record = replace(record, updated=time.time())
    if home is not None:
        with contextlib.suppress(OSError):
            (home / folder).mkdir(parents=True, exist_ok=True)
            raw = json.dumps(asdict(record), indent=2, default=str) + "\n"
            write_atomically(home / folder / f"{record.run}.json", raw.encode())
    return record


def claimed_record(home: Path | None, flower_run: str) -> RunRecord | None:
    """The record of the run that the supervisor has started again as this Flower run, with the id of this process.

    None for a new run, and for one that a user resumes.
    """
    records = [] if home is None or not flower_run else load_records(home)
    for record in records:
        if record.flower_run == flower_run and record.active:
            return save_record(home, replace(record, pid=os.getpid()))
    return None


def load_records(home: Path, folder: str = RUNS) -> list[RunRecord]:
    """All records of a folder, oldest first; files that cannot be read are left out."""
    found: list[tuple[float, RunRecord]] = []
    for path in (home / folder).glob("[!.]*.json"):  # a hidden file is being written, or was left by a crash
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            written, values = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
            # Another version may have written other fields.
            known = {field.name: values[field.name] for field in fields(RunRecord) if field.name in values}
            found.append((written, RunRecord(**{**known, "words": tuple(values["words"])})))
    return [record for _, record in sorted(found, key=lambda item: item[0])]
