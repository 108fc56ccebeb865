"""A deployed run on the server, new or resumed: wait for sites, prepare, run the loop over them (`driver.py`).

The loop and the algorithms are the simulator's; only the exchange differs (`exchange.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ssfl import run_folder
from ssfl.assemble.build import RunSetup, check_model
from ssfl.assemble.continuing import check_unchanged
from ssfl.assemble.execution import resolve_engine
from ssfl.assemble.lifecycle import machine_facts
from ssfl.config import Config, config_to_yaml, load_config, read_config
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.roster import Member
from ssfl.deploy.log import MOST_DETAILS, EventLog, one_line
from ssfl.deploy.protocol.payloads import most_bytes
from ssfl.deploy.server.driver import drive
from ssfl.deploy.server.one_run import one_run
from ssfl.deploy.server.run_record import (
    REFUSALS,
    RunRecord,
    claimed_record,
    home_folder,
    load_records,
    save_record,
)
from ssfl.deploy.server.server_run import ServerRun, members_of
from ssfl.deploy.server.setup import server_data, setup_for
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings, settings_of, split_words
from ssfl.deploy.transport.port import ServerPort
from ssfl.engine.client.errors import EngineError
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.errors import UserError
from ssfl.output import output

JOIN_CONFIG = "join.yaml"


def run_words(
    port: ServerPort,
    words: Sequence[str],
    resume: str = "",
    flower_run: str = "",
    log: EventLog | None = None,
) -> Path:
    """Execute a run, new or resumed. Returns its folder. Raises a UserError before anything is written."""
    home = home_folder()
    log = log or EventLog("server", None if home is None else home / "server.jsonl")
    again = claimed_record(home, flower_run)
    folder = Path(resume).resolve()
    known = _record_of(home, folder) if resume else again
    with ExitStack() as held:
        try:
            held.enter_context(one_run(home, "" if known is None else known.run))
            run = _resumed(port, folder, home, log) if resume else _new(port, words, home, log, again)
        except UserError as error:
            reason = one_line(str(error), MOST_DETAILS)
            refused = again or RunRecord(_new_name(), tuple(words), flower_run=flower_run)
            refused = replace(refused, status="failed", reason=reason)
            refused = _refused_resume(home, folder, refused) if resume else save_record(home, refused)
            log.error("run_stopped", f"{reason}; nothing was written", run=refused.run)
            raise
        run.save_record(pid=os.getpid(), flower_run=flower_run, status="running" if resume else "waiting")
        return _completed(run)


def _completed(run: ServerRun) -> Path:
    """Execute a run and record how it ends. Returns its folder."""
    try:
        return _execute(run)
    except (UserError, EngineError) as error:
        run.record_end("failed", error)
        raise
    except Exception as error:  # the supervisor starts the run again, from its last checkpoint if it has one
        run.save_record(reason=one_line(f"{type(error).__name__}: {error}"))
        raise


def _new_name() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def _record_of(home: Path | None, folder: Path) -> RunRecord | None:
    """The record of the run with this folder, an absolute path without links."""
    records = [] if home is None else load_records(home)
    return next((r for r in reversed(records) if r.folder == str(folder)), None)


def _refused_resume(home: Path | None, folder: Path, refused: RunRecord) -> RunRecord:
    """Record that a resume was refused, which `ssfl deploy run` waits for. Returns the record.

    The run's record is not changed, except if the supervisor tried to resume the run: it would try again.
    """
    known = _record_of(home, folder)
    if known is not None and known.status == "running" and known.flower_run == refused.flower_run:
        save_record(home, replace(known, status="failed", reason=refused.reason))
    about = replace(known or refused, flower_run=refused.flower_run, reason=refused.reason)
    return save_record(home, replace(about, status="refused"), REFUSALS)


def _new(
    port: ServerPort, words: Sequence[str], home: Path | None, log: EventLog, again: RunRecord | None
) -> ServerRun:
    run_words, ours = split_words(words)
    settings = settings_of(ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(["training.client_num_in_total=1000000", *run_words])
    if config.dataset.validation_portion:
        raise DeployError(
            f"dataset.validation_portion={config.dataset.validation_portion:g}: must be 0: only simulations hold "
            "rows out for validation"
        )
    check_model(config)  # before sites have joined
    for warning in caught:
        log.warning("configuration", str(warning.message))
    record = RunRecord(_new_name() if again is None else again.run, tuple(words))
    restarts = 0 if again is None else again.restarts + 1
    record = replace(record, rounds=config.training.comm_round, restarts=restarts)
    return _run(port, config, settings, home, log, record, config_to_yaml(config))


def _resumed(port: ServerPort, folder: Path, home: Path | None, log: EventLog) -> ServerRun:
    run_folder.check_run_folder(folder)
    if run_folder.is_owned(folder):
        raise DeployError(f"{folder}: another process is running this; wait for it or stop it")
    try:
        deployment = json.loads((folder / run_folder.DEPLOYMENT).read_text(encoding="utf-8"))
        join_config = (folder / JOIN_CONFIG).read_text(encoding="utf-8")
        record = RunRecord(str(deployment["run"]), tuple(deployment["words"]), str(folder))
        counts = {int(c): int(n) for c, n in deployment["counts"].items()}
        late = {int(c): int(n) for c, n in deployment.get("late", {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(f"{folder}: not the folder of a deployed run ({error})") from None
    settings = settings_of(split_words(record.words)[1])
    config = read_config(folder / JOIN_CONFIG)
    check_unchanged(config, Checkpoints(folder / run_folder.CHECKPOINTS).newest_facts(), folder, JOIN_CONFIG)
    before = [r.restarts for r in ([] if home is None else load_records(home)) if r.run == record.run]
    restarts = max([0, *before]) + 1
    record = replace(record, rounds=config.training.comm_round, restarts=restarts)
    run = _run(port, config, settings, home, log, record, join_config)
    run.folder, run.counts, run.late = folder, counts, late
    return run


def _run(
    port: ServerPort,
    config: Config,
    settings: DeploySettings,
    home: Path | None,
    log: EventLog,
    record: RunRecord,
    join_config: str,
) -> ServerRun:
    members = members_of(home)
    named = any(word.partition("=")[0] in ("dataset.name", "preset") for word in record.words)
    data = server_data(config, settings, named)
    registry = SiteRegistry(port, members, record.run, log)
    run = ServerRun(port, config, settings, data, registry, log, record, home, join_config)
    registry.join_of, registry.check = run.join_of, run.check
    registry.membership.read = lambda: members_of(home)
    log.info("run_started", " ".join(record.words), run=record.run)
    return run


def _execute(run: ServerRun) -> Path:
    members = members_of(run.home)
    if not run.counts:
        run.wait_for_sites(run.settings.sites or len(members) or 1, run.settings.start_seconds)
        run.counts = {c: s.joined.examples for c, s in run.registry.clients.items() if s.joined is not None}
    else:
        run.wait_for_sites(1, run.settings.start_seconds)
    setup = run.setup = _setup(run, members)
    limit = run.settings.max_reply_mb * 1_000_000 or most_bytes(setup.layout)
    run.registry.max_body_bytes = limit
    folder = run.folder = run.folder or _create_folder(run, setup)
    run.save_record(folder=str(folder), status="running", reason="")
    with run_folder.owned(folder):
        drive(run, setup, folder)
    return folder


def _setup(run: ServerRun, members: Sequence[Member]) -> RunSetup:
    first = next(s.joined for s in run.registry.clients.values() if s.joined is not None)
    # The scoreboard needs an entry for every client number, including sites that join late.
    clients = max(run.settings.sites, 1 + max([*run.counts, *(m.client for m in members)]))
    setup = setup_for(run.config, run.data, first, run.counts_after(0), clients)
    return replace(setup, config=resolve_engine(_server_engine(setup.config), setup))


def _server_engine(config: Config) -> Config:
    """The server only tests the global model, so `auto` settings are not measured there."""
    format_ = "contiguous" if config.engine.memory_format == "auto" else config.engine.memory_format
    convolutions = "direct" if config.engine.convolutions == "auto" else config.engine.convolutions
    engine = replace(
        config.engine, executor="sequential", block=1, memory_format=format_, convolutions=convolutions
    )
    return replace(config, engine=engine)


def _create_folder(run: ServerRun, setup: RunSetup) -> Path:
    files = {
        run_folder.CONFIG: config_to_yaml(setup.config),
        run_folder.ENVIRONMENT: run_folder.environment_text(machine_facts()),
        run_folder.METRICS: "",
        JOIN_CONFIG: run.join_config,
        run_folder.DEPLOYMENT: run.deployment_text,
    }
    root = Path(setup.config.experiment.output_dir).expanduser()
    with output(f"experiment.output_dir={root}"):
        return run_folder.create_run_folder(root, setup.config.wandb.exp_name, files).resolve()
