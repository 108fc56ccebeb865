"""The loop of a deployed run and its files: events, checkpoints, broadcasts, late sites, the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssfl import run_folder
from ssfl.assemble.build import RunSetup
from ssfl.assemble.continuing import CONFIG, kept_values
from ssfl.assemble.execution import executor_of
from ssfl.assemble.export import export
from ssfl.assemble.lifecycle import finished_event, started_event
from ssfl.assemble.loop import central_test_of
from ssfl.config import cohort_size
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol.messages import HeldBroadcast
from ssfl.deploy.protocol.payloads import digest_of
from ssfl.deploy.server.exchange import FleetExchange, QuorumError
from ssfl.deploy.server.metrics import Metrics
from ssfl.deploy.server.server_run import ServerRun
from ssfl.deploy.server.setup import ServerData, ServerTest, algorithm_for
from ssfl.engine.accounting.scoreboard import Scoreboard
from ssfl.engine.client.errors import EngineError
from ssfl.engine.compute.malloc import return_large_blocks
from ssfl.engine.loop import RoundLoop
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.progress import Progress
from ssfl.output import NO_SPACE, write_atomically
from ssfl.report.runs import load_run
from ssfl.report.tables.summary import summary_text
from ssfl.report.write import write_report
from ssfl.tracking import Broadcast, JsonlWriter, trackers_of

BROADCASTS = "broadcasts"
FINISH_SECONDS = 5.0
DISK_SECONDS = 1.0
"""Seconds between two attempts to write to a full disk."""


@dataclass
class _Driver:
    """The round loop and its files: records events and saves checkpoints after every exchange."""

    run: ServerRun
    setup: RunSetup
    folder: Path
    exchange: FleetExchange
    checkpoints: Checkpoints
    writer: JsonlWriter
    observers: Broadcast
    metrics: Metrics
    loop: RoundLoop
    left_out: set[int] = field(default_factory=set)
    """Clients that have joined but cannot take part in this run."""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Record an event, with the clients that did not answer."""
        if event["event"] in ("round", "phase"):
            summary = self.exchange.summary
            event = {**event, "missing_clients": list(summary.missing)}
            self.run.log.info(
                "exchange",
                f"{event['phase']}, round {event['round']}: {summary.answered} of {summary.asked} answered in "
                f"{summary.seconds:.2f} s",
                run=self.run.record.run,
                **{k: event[k] for k in ("phase", "round", "downlink_bytes", "uplink_bytes", "wall_seconds")},
                missing=list(summary.missing),
            )
        self.retry_while_disk_full(lambda: self.observers.record(event))
        self.metrics.record(event)

    def save(self, progress: Progress) -> float:
        """After every exchange: save a checkpoint and the status. Returns seconds."""
        start = time.perf_counter()
        if self.exchange.number % self.run.settings.checkpoint_rounds == 0:
            self.checkpoint(progress)
        self.run.save_record(round=progress.clock.round - 1)
        return time.perf_counter() - start

    def retry_while_disk_full(self, write: Callable[[], object]) -> None:
        """Write; on a full disk, retry for at most `patience_seconds`.

        Raises DeployError after that, and at once for any other reason why a file cannot be written.
        """
        end, reported = time.monotonic() + self.run.settings.patience_seconds, False
        while True:
            try:
                write()
                return
            except OSError as error:
                text = f"{error.filename or self.folder}: {error.strerror or error}"
                if error.errno not in NO_SPACE:
                    raise DeployError(f"{text}; the last checkpoint is kept") from error
                if not reported:
                    self.run.log.error(
                        "disk_full", f"{text}; waiting for free space", run=self.run.record.run
                    )
                    reported = True
                if time.monotonic() >= end:
                    raise DeployError(f"{text}; the last checkpoint is kept") from None
                time.sleep(DISK_SECONDS)

    def checkpoint(self, progress: Progress) -> None:
        """Save what a restarted server resumes from."""
        extra = {
            "metrics_bytes": self.writer.position,
            "wall_seconds": time.monotonic() - self.run.started,
            "exchange": self.exchange.number,
            "broadcasts": [[h.digest, h.phase, h.round] for h in self.exchange.broadcasts.values()],
            "published": {str(c): n for c, n in self.exchange.published.versions.items()},
            CONFIG: kept_values(self.run.config),
        }
        self.retry_while_disk_full(lambda: self.checkpoints.save(progress, extra))
        self.exchange.saved()
        self.metrics.saved()

    def keep_broadcast(self, broadcast: HeldBroadcast) -> None:
        """Write a broadcast to disk, before the checkpoint that names it."""
        folder = self.folder / BROADCASTS
        self.retry_while_disk_full(lambda: folder.mkdir(exist_ok=True))
        for number, blob in enumerate(broadcast.blobs):
            path = folder / f"{broadcast.digest}-{number}.bin"
            self.retry_while_disk_full(partial(write_atomically, path, blob))

    def take_late_sites(self, state: Any) -> None:
        """Before a plan: sites that have joined since take part, and the cohort grows with them (`training.frac`).

        After a crash they are added before the same exchange again, so that repeated rounds have the same bits.
        """
        done = self.exchange.number
        if self.run.settings.late_sites:
            self._add_late_sites(state, done)
        counts = self.run.counts_after(done)
        if counts != self.loop.context.example_counts:
            self.loop.context = replace(self.loop.context, example_counts=counts)
            self.loop.algorithm = algorithm_for(self.setup, len(counts))

    def _add_late_sites(self, state: Any, done: int) -> None:
        """Add clients that have joined, after `done` exchanges, if the method has a global model."""
        joined = {c: s.joined.examples for c, s in self.run.registry.clients.items() if s.joined is not None}
        late, most = joined.keys() - self.run.counts.keys(), self._most_clients
        self._report_left_out({c for c in late if c >= most}, most)
        new = {c: joined[c] for c in late if c < most}
        if not new or self.loop.algorithm.weights_to_evaluate(state, self.loop.context) is None:
            return
        self.run.counts |= new
        self.run.late |= dict.fromkeys(new, done)
        raw = self.run.deployment_text.encode()
        self.retry_while_disk_full(lambda: write_atomically(self.folder / run_folder.DEPLOYMENT, raw))
        text = f"clients {', '.join(map(str, sorted(new)))} take part from now on, after {done} exchanges"
        self.run.log.info("late_sites", text, run=self.run.record.run)

    @property
    def _most_clients(self) -> int:
        """Number of clients for which the run has results; a resumed one keeps it when the roster has grown."""
        board = None if self.loop.progress is None else self.loop.progress.scoreboard
        return self.setup.federation.num_clients if board is None else len(board.total)

    def _report_left_out(self, clients: set[int], most: int) -> None:
        """Log, once for each client, that its number is above those of this run."""
        for client in sorted(clients - self.left_out):
            text = (
                f"client {client} does not take part: this run was started for clients 0 to {most - 1} "
                "(deploy.sites, or the largest number registered then); it can take part in the next run"
            )
            self.run.log.warning("site_left_out", text, run=self.run.record.run, client=client)
        self.left_out |= clients


def drive(run: ServerRun, setup: RunSetup, folder: Path) -> None:
    """Run the loop to its end, from the folder's last checkpoint if there is one.

    Raises EngineError, QuorumError; DeployError for a full disk or a damaged file.
    """
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, 0.0, 1)
    saved = checkpoints.latest(setup.algorithm.records)
    for error in checkpoints.passed_over:
        text = f"{error}; continuing from the one before"
        run.log.warning("checkpoint_passed_over", text, run=run.record.run)
    extra: dict[str, Any] = saved[1] if saved else {"metrics_bytes": 0, "wall_seconds": 0.0, "exchange": 0}
    run.started = time.monotonic() - extra["wall_seconds"]
    exchange = FleetExchange(run.registry, setup.algorithm.tasks, setup.wire, run.settings, run.log, folder)
    exchange.number = extra["exchange"]
    exchange.checkpoints = (exchange.number,)
    exchange.broadcasts = _broadcasts(folder, extra.get("broadcasts", []))
    exchange.published.restore({int(c): int(n) for c, n in extra.get("published", {}).items()})
    with ExitStack() as stack:
        writer = JsonlWriter(folder / run_folder.METRICS, keep_bytes=extra["metrics_bytes"])
        stack.callback(writer.close)
        metrics = Metrics(run.settings.metrics_port, run.record.run, run.log)
        stack.callback(metrics.close)
        observers = Broadcast((writer, *trackers_of(setup.config, folder, None)))
        stack.callback(observers.close)
        loop = _loop(setup, exchange, run.data)
        return_large_blocks(setup.theta.nbytes)
        driver = _Driver(run, setup, folder, exchange, checkpoints, writer, observers, metrics, loop)
        loop.emit, loop.save, exchange.on_broadcast = driver.emit, driver.save, driver.keep_broadcast
        loop.before_plan = driver.take_late_sites
        exchange.write = driver.retry_while_disk_full
        run.registry.on_update = metrics.live
        metrics.live(run.registry.live)
        _run_loop(driver, saved[0] if saved else None)


def _run_loop(driver: _Driver, saved: Progress | None) -> None:
    run, setup, loop = driver.run, driver.setup, driver.loop
    if saved is None:
        driver.emit(
            started_event(setup)
            | {"clients": len(setup.context.clients), "cohort": cohort_size(setup.config)}
        )
        progress = loop.start(setup.theta, setup.config.training.comm_round)
        scoreboard = Scoreboard.initial({}, setup.federation.num_clients)  # with entries for late sites
        progress = loop.progress = replace(progress, scoreboard=scoreboard)
    else:
        driver.emit({"event": "resumed", "round": saved.clock.round - 1})
        run.log.info("resumed", f"after round {saved.clock.round - 1}", run=run.record.run)
        loop.exchange.restore(saved.client_memories)
        progress = saved
    try:
        progress = loop.run(progress)
    except (EngineError, QuorumError) as error:
        done = loop.progress.clock.round - 1 if loop.progress is not None else 0
        driver.emit({"event": "run_interrupted", "round": done, "reason": str(error)})
        raise
    seconds = time.monotonic() - run.started
    driver.emit(finished_event(setup, driver.folder, progress, seconds))
    if setup.algorithm.weights_to_evaluate(progress.state, loop.context) is not None:
        driver.retry_while_disk_full(lambda: export(setup, progress, driver.folder))
    driver.retry_while_disk_full(lambda: write_report([driver.folder], driver.folder / run_folder.REPORT))
    print(summary_text(load_run(driver.folder)), flush=True)
    driver.exchange.published.forget()
    run.registry.finish(FINISH_SECONDS)
    run.record_end("finished")


def _loop(setup: RunSetup, exchange: FleetExchange, data: ServerData) -> RoundLoop:
    central = None if data.arrays is None else central_test_of(setup, executor_of(setup))
    return RoundLoop(
        setup.algorithm,
        setup.context,
        exchange,
        ServerTest(central),
        emit=lambda event: None,
        save=lambda progress: 0.0,
        test_every=setup.config.training.frequency_of_the_test,
    )


def _broadcasts(folder: Path, entries: Sequence[Sequence[Any]]) -> dict[str, HeldBroadcast]:
    """Load the broadcasts that a checkpoint names. Raises DeployError when a file is missing or damaged."""
    found = {}
    for digest, phase, round_ in entries:
        paths = sorted((folder / BROADCASTS).glob(f"{digest}-*.bin"))
        blobs = tuple(path.read_bytes() for path in paths)
        if digest_of(blobs) != digest:
            raise DeployError(
                f"{folder / BROADCASTS}: broadcast {digest} is missing or damaged; start a new run"
            )
        found[digest] = HeldBroadcast(digest, phase, round_, blobs)
    return found
