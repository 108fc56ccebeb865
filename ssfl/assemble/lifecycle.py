"""A run from configuration to summary: start, carry on, end cleanly."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ssfl
from ssfl.assemble import folder as place
from ssfl.assemble.build import Parts, federation_of, parts_of
from ssfl.assemble.execution import executor_of, resolve_engine, state_memory_bytes
from ssfl.assemble.export import export
from ssfl.assemble.loop import (
    FAILED,
    INTERRUPTED,
    STOPPED_BY_TORCHRUN,
    first_progress,
    follow,
    loop_of,
    undisturbed,
)
from ssfl.assemble.slices import SliceEnd, ending
from ssfl.config import Config, cohort_size, config_from_yaml, config_to_yaml
from ssfl.data.partition_view import show_table
from ssfl.engine.checkpoint import Checkpoints
from ssfl.engine.client_store import ClientStore, whole
from ssfl.engine.driver import Progress
from ssfl.engine.executors import Executor
from ssfl.engine.jobs import DivergedError
from ssfl.engine.ledger import dense_payload_bytes
from ssfl.engine.processes import WorkerError
from ssfl.engine.ranks import Link, RankError, first_decides
from ssfl.engine.simulator import Simulator
from ssfl.engine.torchrun import joined
from ssfl.report import load_run, summary_text, write_report
from ssfl.tracking import Broadcast, JsonlWriter, Observer, check_trackers, trackers_of


@dataclass
class Running:
    """A run in progress: its ingredients, folder, writer and loop."""

    parts: Parts
    folder: Path
    writer: JsonlWriter
    observers: Observer
    executor: Executor
    checkpoints: Checkpoints
    started: float
    link: Link
    store: ClientStore
    done: tuple[Progress, int] | None = None
    """The last exchange finished here and where metrics.jsonl stood after it; set together, as one."""

    def save(self, progress: Progress) -> float:
        """Offer a checkpoint; the seconds it took."""
        self.done = (progress, self.writer.position)
        if not self.checkpoints.due(progress):
            return 0.0
        start = time.perf_counter()
        self.save_now()
        return time.perf_counter() - start

    def save_now(self) -> None:
        """Write a checkpoint of the last finished exchange, with the position in metrics.jsonl that belongs to it."""
        if self.done is None:
            return
        progress, position = self.done
        spent = time.monotonic() - self.started
        self.store.flush()
        self.checkpoints.save(progress, {"metrics_bytes": position, "wall_seconds": spent})
        self.store.keep(progress.client_states)


def run(config: Config, console: str | None = None) -> int:
    """A new run; its exit code. One-line errors of configuration and data are raised before anything is written."""
    check_trackers(config)
    try:
        with joined(config.engine.rank_timeout_seconds) as link:
            parts, folder = _begin(config, link)
            return _carry_on(parts, folder, console, link)
    except RankError as error:  # before the first round
        print(f"ssfl: {error}", file=sys.stderr)
        return FAILED


def _begin(config: Config, link: Link) -> tuple[Parts, Path]:
    """A new run's parts and folder: the first rank decides, loads and writes, then the others load."""
    made: list[Parts] = []

    def create() -> tuple[str, str]:
        parts = parts_of(config)
        resolved = resolve_engine(config, parts, link.size)
        made.append(replace(parts, config=resolved))
        files = {
            place.CONFIG: config_to_yaml(resolved),
            place.ENVIRONMENT: place.environment_text(),
            place.METRICS: "",
        }
        root = Path(config.experiment.output_dir)
        return files[place.CONFIG], str(place.create_run_folder(root, config.wandb.exp_name, files))

    text, folder = first_decides(link, create)
    return made[0] if made else parts_of(config_from_yaml(text)), Path(folder)


def resume(folder: Path, console: str | None = None) -> int:
    """Continue a run that was stopped, at its last checkpoint; harmless when it had finished."""
    folder = Path(folder)
    place.check_run_folder(folder)
    if place.is_finished(folder):
        print(f"{folder} is finished; nothing to resume")
        return 0
    config = config_from_yaml((folder / place.CONFIG).read_text())
    try:
        with joined(config.engine.rank_timeout_seconds) as link:
            return _carry_on(parts_of(config), folder, console, link)
    except RankError as error:  # before the first round
        print(f"ssfl: {error}", file=sys.stderr)
        return FAILED


def show_partition(config: Config, out: Path | None = None) -> int:
    """Print the client x class table, and plot it."""
    print(show_table(federation_of(config), out))
    return 0


def _carry_on(parts: Parts, folder: Path, console: str | None, link: Link) -> int:
    """Run from the folder's last checkpoint, or from the beginning, to the end."""
    if link.rank:
        return follow(parts, link)
    try:
        with place.owned(folder):
            return _run_owned(parts, folder, console, link)
    except KeyboardInterrupt:  # while workers start, or while the last files are written
        say_how_to_go_on("interrupted", folder)
        return INTERRUPTED


def _run_owned(parts: Parts, folder: Path, console: str | None, link: Link) -> int:
    checkpoints = Checkpoints(
        folder / place.CHECKPOINTS,
        parts.config.checkpoint.every_seconds,
        parts.config.checkpoint.every_rounds,
    )
    saved = checkpoints.latest(parts.algorithm.records)
    extra: dict[str, Any] = saved[1] if saved else {"metrics_bytes": 0, "wall_seconds": 0.0}
    writer = JsonlWriter(folder / place.METRICS, keep_bytes=extra["metrics_bytes"])
    observers = Broadcast((writer, *trackers_of(parts.config, folder, console)))
    started = time.monotonic() - extra["wall_seconds"]
    executor = executor_of(parts, link)
    # Several ranks hold the same states, shared tensors alike, or they could not name them to one another.
    budget = state_memory_bytes(parts.config) if link.size == 1 else None
    store = ClientStore(folder / place.CLIENTS, budget)
    running = Running(parts, folder, writer, observers, executor, checkpoints, started, link, store)
    try:
        return _run_to_end(running, saved[0] if saved else None)
    finally:
        executor.close()
        observers.close()


def _run_to_end(running: Running, saved: Progress | None) -> int:
    parts = running.parts
    simulator = Simulator(running.executor, store=running.store)
    save = ending(running.save, parts.config.checkpoint.stop_after_seconds)
    loop = loop_of(parts, simulator, running.executor, running.observers.record, save)
    try:
        if saved is None:
            running.observers.record(started_event(parts))
        else:
            running.observers.record({"event": "resumed", "round": saved.clock.round - 1})
        if saved is not None and running.link.size > 1:  # the other ranks may not see this folder
            running.store.restore(saved.client_states)
            saved = replace(saved, client_states=whole(running.store.snapshot()))
        progress = first_progress(loop, parts, saved, running.link)
        simulator.restore(progress.client_states)
        progress = loop.run(progress)
    except KeyboardInterrupt:
        _stopped(running, loop.progress, "interrupted" if running.link.size == 1 else STOPPED_BY_TORCHRUN)
        return INTERRUPTED
    except SliceEnd as end:
        _stopped(running, end.progress, str(end))
        return 0
    except (DivergedError, WorkerError, RankError) as error:
        _stopped(running, loop.progress, str(error))
        return FAILED
    running.observers.record(finished_event(running, progress))
    export(parts, progress, running.folder)
    _summary(running)
    return 0


def _stopped(running: Running, progress: Progress | None, reason: str) -> None:
    """Save the last finished exchange and say how to go on. `progress`: the loop's, where none was finished here."""
    with undisturbed(running.link):
        running.save_now()
    last = running.done[0] if running.done is not None else progress
    done = last.clock.round - 1 if last is not None else 0
    running.observers.record({"event": "run_interrupted", "round": done, "reason": reason})
    running.observers.close()  # the progress bar leaves the terminal before the last words
    say_how_to_go_on(f"{reason}; stopped after round {done}", running.folder)


def say_how_to_go_on(reason: str, folder: Path) -> None:
    """The last words of a run that can be resumed."""
    print(f"ssfl: {reason}", file=sys.stderr)
    print(f"continue with: ssfl resume {folder}", file=sys.stderr)


def started_event(parts: Parts) -> dict[str, Any]:
    """The first line of metrics.jsonl."""
    config = parts.config
    return {
        "event": "run_started",
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "algorithm": config.algorithm.name,
        "mode": config.algorithm.params.mode,
        "model": config.model.name,
        "dataset": parts.federation.arrays.name,
        "clients": parts.federation.num_clients,
        "cohort": cohort_size(config),
        "rounds": config.training.comm_round,
        "density": config.model.dense_ratio,
        "seed": config.experiment.seed,
        "parameters": parts.layout.size,
        "prunable_parameters": parts.layout.prunable_size,
        "dense_bytes": dense_payload_bytes(parts.layout.size),
        "executor": config.engine.executor,
        "version": ssfl.__version__,
    }


def finished_event(running: Running, progress: Progress) -> dict[str, Any]:
    """Totals, and the same for dense FedAvg by arithmetic."""
    config, ledger = running.parts.config, progress.ledger
    rounds = config.training.comm_round
    dense = dense_payload_bytes(running.parts.layout.size) * cohort_size(config) * rounds
    last = load_run(running.folder).last_evaluation()
    names = ("global_accuracy", "global_loss", "client_accuracy_mean", "client_accuracy_std")
    total = ledger.downlink_bytes + ledger.uplink_bytes + ledger.peer_bytes
    return {
        "event": "run_finished",
        "rounds": rounds,
        **{name: last.get(name) for name in names},
        "total_downlink_bytes": ledger.downlink_bytes,
        "total_uplink_bytes": ledger.uplink_bytes,
        "total_peer_bytes": ledger.peer_bytes,
        "fedavg_downlink_bytes": dense,
        "fedavg_uplink_bytes": dense,
        "bytes_ratio": 2 * dense / total if total else None,
        "total_train_flops": ledger.train_flops,
        "wall_seconds": time.monotonic() - running.started,
    }


def _summary(running: Running) -> None:
    """Plots and the closing lines."""
    write_report([running.folder], running.folder / place.REPORT)
    print(summary_text(load_run(running.folder)))
