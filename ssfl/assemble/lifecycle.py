"""A run from configuration to summary: start, resume, end cleanly."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ssfl
from ssfl import run_folder
from ssfl.assemble.build import RunSetup, counting_notes, federation_of, setup_of, sites_note
from ssfl.assemble.continuing import (
    ROUNDS,
    check_rounds,
    check_unchanged,
    rounds_asked,
    usable_by,
    with_rounds,
)
from ssfl.assemble.execution import executor_of, resolve_engine, state_memory_bytes
from ssfl.assemble.export import export
from ssfl.assemble.failures import say_how_to_resume, start_command
from ssfl.assemble.inputs import INPUTS, check_inputs, input_digests
from ssfl.assemble.loop import (
    FAILED,
    INTERRUPTED,
    STOPPED_BY_TORCHRUN,
    first_progress,
    follow,
    loop_of,
    simulator_of,
)
from ssfl.assemble.running import Running, failed, first_events, set_model_aside, stopped, summarise
from ssfl.assemble.time_slices import SliceEnd, ending
from ssfl.config import (
    Config,
    ConfigError,
    cohort_size,
    config_from_yaml,
    config_to_yaml,
    read_config,
    unread_keys,
)
from ssfl.data.partition_view import show_table
from ssfl.engine.accounting.ledger import dense_payload_bytes
from ssfl.engine.client.errors import EngineError
from ssfl.engine.executors.distributed.link import Link, RankError, first_decides
from ssfl.engine.executors.distributed.torchrun import joined
from ssfl.engine.state.checkpoint import Checkpoints, Facts
from ssfl.engine.state.client_store import ClientStore, whole
from ssfl.engine.state.progress import Progress
from ssfl.native import library
from ssfl.output import output, output_error
from ssfl.report.runs import load_run
from ssfl.report.tables.breakdown import OVERALL
from ssfl.stop_signals import check_stop
from ssfl.tracking import Broadcast, JsonlWriter, check_trackers, trackers_of


def run(config: Config, console: str | None = None) -> int:
    """Execute a new run; returns its exit code. Errors of configuration and data are raised before writing files."""
    check_trackers(config)
    try:
        with joined(config.engine.rank_timeout_seconds) as link:
            setup, folder = _begin(config, link)
            return _carry_on(setup, folder, console, link)
    except RankError as error:  # before the first round
        print(f"ssfl: {error}", file=sys.stderr)
        return FAILED


def machine_facts() -> dict[str, Any]:
    """The entries of a run folder's environment about arithmetic: instruction sets of PyTorch and our kernels."""
    return {
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "kernels_instruction_set": library.isa(),
    }


def _begin(config: Config, link: Link) -> tuple[RunSetup, Path]:
    """A new run's setup and folder: the first rank resolves, loads and writes; then the others load."""
    made: list[RunSetup] = []

    def create() -> tuple[str, str]:
        setup = setup_of(config)
        if note := sites_note(config, setup.config):
            print(f"ssfl: {note}", file=sys.stderr)
        resolved = resolve_engine(setup.config, setup, link.size)
        made.append(replace(setup, config=resolved))
        files = {
            run_folder.CONFIG: config_to_yaml(resolved),
            run_folder.ENVIRONMENT: run_folder.environment_text(machine_facts()),
            run_folder.METRICS: "",
        }
        root, name = Path(config.experiment.output_dir).expanduser(), config.wandb.exp_name
        with output(f"experiment.output_dir={root}, wandb.exp_name={name:.100}"):
            return files[run_folder.CONFIG], str(run_folder.create_run_folder(root, name, files))

    text, folder = first_decides(link, create)
    return made[0] if made else setup_of(config_from_yaml(text)), Path(folder)


def resume(folder: Path, console: str | None = None, words: Sequence[str] = ()) -> int:
    """Continue a stopped run from its last checkpoint; has no effect on a finished run.

    words: `training.comm_round=N` trains to N rounds, also after the run has finished. Raises ConfigError for other
    words, and if config.yaml was changed in keys that the run's numbers depend on.
    """
    folder = Path(folder)
    run_folder.check_run_folder(folder)
    if (folder / run_folder.DEPLOYMENT).exists():
        raise ConfigError(
            "FOLDER", f"{folder}: a deployed run; continue with: ssfl deploy run --resume {folder}"
        )
    asked = rounds_asked(words)
    facts = Checkpoints(folder / run_folder.CHECKPOINTS).newest_facts()
    config = read_config(folder / run_folder.CONFIG)
    ended: list[int] = []

    def decide() -> str:
        """The configuration to continue with; empty if the run is finished. Other ranks may lack the run's files."""
        check_rounds(asked, facts)
        if run_folder.is_finished(folder) and not (asked and facts and asked > facts.rounds):
            ended.append(_finished_before(folder, facts, asked, console or "auto"))
            return ""
        check_unchanged(config, facts, folder, run_folder.CONFIG, asked)
        return config_to_yaml(with_rounds(config, asked))

    try:
        with joined(config.engine.rank_timeout_seconds) as link:
            if text := first_decides(link, decide):
                return _carry_on(setup_of(config_from_yaml(text)), folder, console, link)
            return ended[0] if ended else 0
    except RankError as error:  # before the first round
        print(f"ssfl: {error}", file=sys.stderr)
        return FAILED


def _finished_before(folder: Path, facts: Facts | None, asked: int | None, console: str) -> int:
    """Write the report of a finished run if it is missing; otherwise print that there is nothing to resume."""
    if asked is not None and facts is None:
        anew = start_command(folder, f"{ROUNDS}={asked}")
        raise ConfigError(ROUNDS, f"{folder}: has no checkpoint to continue from; start again with: {anew}")
    if not run_folder.report_is_current(folder):
        return summarise(folder, console)
    longer = f"ssfl resume {shlex.quote(str(folder))} {ROUNDS}=N"
    print(f"{folder} is finished; nothing to resume (to train longer: {longer})")
    return 0


def show_partition(config: Config, out: Path | None = None) -> int:
    """Print the client x class table, and plot it."""
    # Only an IID deal depends on the order of the file's rows, besides the counts.
    federation = federation_of(config, pixels=config.dataset.partition_method == "iid")
    counted = replace(config, training=replace(config.training, client_num_in_total=federation.num_clients))
    for note in counting_notes(config, counted):
        print(f"ssfl: {note}", file=sys.stderr)
    print(show_table(federation, out))
    return 0


def _carry_on(setup: RunSetup, folder: Path, console: str | None, link: Link) -> int:
    """Run from the folder's last checkpoint, or from the beginning, to the end."""
    if link.rank:
        return follow(setup, link)
    try:
        with run_folder.owned(folder):
            return _run_owned(setup, folder, console, link)
    except KeyboardInterrupt:  # while workers start, or while the last files are written
        say_how_to_resume("interrupted", folder)
        return INTERRUPTED


def _run_owned(setup: RunSetup, folder: Path, console: str | None, link: Link) -> int:
    checkpoints = Checkpoints(
        folder / run_folder.CHECKPOINTS,
        setup.config.checkpoint.every_seconds,
        setup.config.checkpoint.every_rounds,
    )
    saved = checkpoints.latest(setup.algorithm.records, usable_by(setup))
    extra: dict[str, Any] = saved[1] if saved else {"metrics_bytes": 0, "wall_seconds": 0.0}
    inputs = input_digests(setup)
    check_inputs(extra.get(INPUTS), setup, inputs, folder)
    if saved is not None and saved[0].clock.total < setup.config.training.comm_round:
        set_model_aside(folder, saved[0].clock.total)
    with ExitStack() as stack:
        writer = JsonlWriter(folder / run_folder.METRICS, keep_bytes=extra["metrics_bytes"])
        stack.callback(writer.close)
        observers = Broadcast((writer, *trackers_of(setup.config, folder, console)))
        stack.callback(observers.close)
        started = time.monotonic() - extra["wall_seconds"]
        executor = executor_of(setup, link)
        stack.callback(executor.close)
        # All ranks must hold the same states in memory, because they refer to shared tensors by name.
        budget = state_memory_bytes(setup.config) if link.size == 1 else None
        store = ClientStore(folder / run_folder.CLIENTS, budget)
        running = Running(
            setup, folder, writer, observers, executor, checkpoints, started, link, store, inputs
        )
        return _run_to_end(running, saved[0] if saved else None, console or setup.config.tracking.console)


def _run_to_end(running: Running, saved: Progress | None, console: str) -> int:
    setup = running.setup
    simulator = simulator_of(setup, running.executor, running.store)
    save = ending(running.save, setup.config.checkpoint.stop_after_seconds)
    loop = loop_of(setup, simulator, running.executor, running.observers.record, save)
    try:
        check_stop()
        saved = first_events(running, saved, started_event(setup))
        if saved is not None and running.link.size > 1:  # the other ranks may not see this folder
            running.store.restore(saved.client_memories)
            saved = replace(saved, client_memories=whole(running.store.snapshot()))
        progress = first_progress(loop, setup, saved, running.link)
        loop.exchange.restore(progress.client_memories)
        # Take the handles from the store: those in a checkpoint do not contain their folder.
        progress = loop.run(replace(progress, client_memories=loop.exchange.client_memories()))
        running.save_now()  # so that the run can be extended
        seconds = time.monotonic() - running.started
        running.observers.record(finished_event(setup, running.folder, progress, seconds))
        export(setup, progress, running.folder)
    except KeyboardInterrupt:
        stopped(running, loop.progress, "interrupted" if running.link.size == 1 else STOPPED_BY_TORCHRUN)
        return INTERRUPTED
    except SliceEnd as end:
        stopped(running, end.progress, str(end))
        return 0
    except EngineError as error:
        failed(running, loop.progress, error, simulator)
        return FAILED
    except OSError as error:
        reason = output_error(error)
        if reason is None:
            raise
        stopped(running, loop.progress, str(reason))
        return FAILED
    return summarise(running.folder, console)


def started_event(setup: RunSetup) -> dict[str, Any]:
    """The first line of metrics.jsonl."""
    config = setup.config
    method = config.algorithm.method
    return {
        "event": "run_started",
        "time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "algorithm": config.algorithm.name,
        "method": method.label(config.algorithm.params),
        "model": config.model.name,
        "dataset": setup.federation.arrays.name,
        "clients": setup.federation.num_clients,
        "cohort": cohort_size(config),
        "rounds": config.training.comm_round,
        "density": config.model.dense_ratio if method.reads_density else 1.0,
        "seed": config.experiment.seed,
        "parameters": setup.layout.size,
        "prunable_parameters": setup.layout.prunable_size,
        "dense_bytes": dense_payload_bytes(setup.layout.size),
        "executor": config.engine.executor,
        "version": ssfl.__version__,
        "unread_keys": list(unread_keys(config)),
        **names_of(setup),
    }


def names_of(setup: RunSetup) -> dict[str, Any]:
    """Names of classes and clients for the rows of tables, if the run has such tables."""
    names: dict[str, Any] = {}
    if setup.config.tracking.metrics != "accuracy":
        names["class_names"] = list(setup.federation.arrays.class_names)
    if setup.federation.client_names:
        names["client_names"] = list(setup.federation.client_names)
    return names


def finished_event(setup: RunSetup, folder: Path, progress: Progress, wall_seconds: float) -> dict[str, Any]:
    """Totals of the run, and the computed bytes of dense FedAvg."""
    config, ledger = setup.config, progress.ledger
    rounds = progress.clock.round - 1
    dense = dense_payload_bytes(setup.layout.size) * cohort_size(config) * rounds
    last = load_run(folder).last_evaluation()
    names = ["global_accuracy", "global_loss", "client_accuracy_mean", "client_accuracy_std"]
    names += [name for name in OVERALL if name in last]
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
        "wall_seconds": wall_seconds,
    }
