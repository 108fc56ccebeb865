"""A run in progress: its checkpoints, its first events, and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssfl import run_folder
from ssfl.assemble.build import RunSetup
from ssfl.assemble.continuing import CONFIG, kept_values
from ssfl.assemble.failures import keep_evidence, say_how_to_resume, say_what_helps
from ssfl.assemble.inputs import INPUTS
from ssfl.assemble.loop import FAILED, undisturbed
from ssfl.code_version import code_version
from ssfl.config import config_to_yaml, read_config
from ssfl.engine.client.errors import EngineError
from ssfl.engine.executors.distributed.link import Link
from ssfl.engine.executors.executor import Executor
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.client_store import ClientStore
from ssfl.engine.state.progress import Progress
from ssfl.output import output_error, write_atomically
from ssfl.report.runs import load_run
from ssfl.report.tables.summary import summary_text
from ssfl.report.write import write_report
from ssfl.stop_signals import check_stop
from ssfl.tracking import JsonlWriter, Observer


@dataclass
class Running:
    """A run in progress: its objects, folder and writer."""

    setup: RunSetup
    folder: Path
    writer: JsonlWriter
    observers: Observer
    executor: Executor
    checkpoints: Checkpoints
    started: float
    link: Link
    store: ClientStore
    inputs: Mapping[str, str]
    """Digests of the data and of the network."""
    done: tuple[Progress, int] | None = None
    """The last exchange finished here and the position in metrics.jsonl after it; set together."""
    saved: Progress | None = None
    """The content of the newest checkpoint, if this process wrote or read it."""

    def save(self, progress: Progress) -> float:
        """Write a checkpoint if one is due; returns the seconds it took.

        Phases after the last round are not saved: an extended run continues from the last round without them, and a
        run that is stopped there repeats them.
        """
        before = self.saved if self.done is None else self.done[0]
        if before is None or not _closing(before):
            self.done = (progress, self.writer.position)
        check_stop()
        if not self.checkpoints.due(progress):
            return 0.0
        start = time.perf_counter()
        self.save_now()
        return time.perf_counter() - start

    def save_now(self) -> None:
        """Write a checkpoint of the last finished exchange, with the position in metrics.jsonl that belongs to it."""
        if self.done is None or self.done[0] is self.saved:
            return
        progress, position = self.done
        spent = time.monotonic() - self.started
        self.store.flush()
        extra = {
            "metrics_bytes": position,
            "wall_seconds": spent,
            CONFIG: kept_values(self.setup.config),
            INPUTS: dict(self.inputs),
        }
        self.checkpoints.save(progress, extra)
        self.saved = progress
        self.store.keep(progress.client_memories)


def _closing(progress: Progress) -> bool:
    """Whether all training rounds are done."""
    return progress.clock.round > progress.clock.total


def set_model_aside(folder: Path, rounds: int) -> None:
    """Rename the model of a run that finished with `rounds` rounds and is now extended, and files made from it."""
    written = [folder / name for name in (run_folder.MODEL, run_folder.CLIENT_MODELS)]
    exported = [path for path in folder.iterdir() if path.stem.endswith("_exported")]
    for path in (*written, *exported):
        if path.exists():
            path.replace(path.with_name(f"{path.stem}.{rounds}-rounds{path.suffix}"))


def first_events(running: Running, saved: Progress | None, started: Mapping[str, Any]) -> Progress | None:
    """Record that the run starts, is resumed, or is extended. Returns the progress to continue from.

    started: the event of a new run.
    """
    setup, record = running.setup, running.observers.record
    if saved is None:
        record(started)
        _keep_config(running)
        return None
    for error in running.checkpoints.passed_over:
        record({"event": "warning", "message": f"{error}; continuing from the previous checkpoint"})
    done, before, rounds = saved.clock.round - 1, saved.clock.total, setup.config.training.comm_round
    running.saved = saved
    if rounds != before:
        saved = replace(saved, clock=replace(saved.clock, total=rounds))
        record({"event": "extended", "round": done, "rounds_before": before, "rounds": rounds})
        running.store.restore(saved.client_memories)
        running.done = (saved, running.writer.position)
        running.save_now()
    _keep_config(running)
    record({"event": "resumed", "round": done, "code": asdict(code_version())})
    return saved


def _keep_config(running: Running) -> None:
    """Write the current number of rounds to config.yaml if it changed."""
    path, config = running.folder / run_folder.CONFIG, running.setup.config
    if read_config(path).training.comm_round != config.training.comm_round:
        write_atomically(path, config_to_yaml(config).encode())


def stopped(running: Running, progress: Progress | None, reason: str) -> None:
    """End cleanly and print how to resume. `progress`: the loop's, used if no exchange was finished here."""
    done = _saved(running, progress, reason)
    say_how_to_resume(f"{reason}; stopped after round {done}", running.folder)


def failed(running: Running, progress: Progress | None, error: EngineError, simulator: Simulator) -> None:
    """End cleanly, save the inputs of the failed step if requested, print what may help."""
    done = _saved(running, progress, str(error))
    reason = f"{error}; stopped after round {done}"
    kept = None
    with suppress(OSError):  # no space; the advice is printed anyway
        kept = keep_evidence(error, running.setup, simulator, running.folder)
    say_what_helps(reason, error, running.setup, running.folder)
    if kept is not None:
        print(f"traceback and inputs of the failed step: {kept}", file=sys.stderr)


def _saved(running: Running, progress: Progress | None, reason: str) -> int:
    """Save the last finished exchange, close the observers; returns the number of rounds that are saved."""
    last = running.done[0] if running.done is not None else progress or running.saved
    with undisturbed():
        try:
            running.save_now()
        except OSError:  # no space: a resume continues from the previous checkpoint
            last = running.saved
    done = last.clock.round - 1 if last is not None else 0
    with suppress(OSError):
        running.observers.record({"event": "run_interrupted", "round": done, "reason": reason})
    running.observers.close()  # remove the progress bar before the last lines
    return done


def summarise(folder: Path, console: str) -> int:
    """Write the report and print the summary; if the report cannot be written, `ssfl resume` writes it later.

    console: how progress is shown; with `json`, the standard output has nothing but events.
    """
    code = 0
    try:
        write_report([folder], folder / run_folder.REPORT)
    except OSError as error:
        reason = output_error(error)
        if reason is None:
            raise
        say_how_to_resume(f"the run is finished, but its report is not: {reason}", folder)
        code = FAILED
    print(summary_text(load_run(folder)), file=sys.stderr if console == "json" else sys.stdout)
    return code
