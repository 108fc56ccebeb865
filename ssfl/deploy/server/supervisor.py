"""The server's supervisor: starts SuperLink and SuperExec, registers sites, resumes runs after a crash."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.addresses import (
    ANY_ADDRESS,
    host_name,
    is_loopback,
    join_address,
    network_of,
    split_address,
)
from ssfl.deploy.federation.app_bundle import write_app
from ssfl.deploy.federation.folders import server_address, write_flower_config
from ssfl.deploy.federation.roster import existing_roster, load_roster
from ssfl.deploy.log import EventLog
from ssfl.deploy.processes.process_group import (
    ProcessGroup,
    check_address,
    flower_environment,
    last_line,
    wait_for_port,
)
from ssfl.deploy.processes.reaper import MARK
from ssfl.deploy.server.run_record import OPEN_VARIABLE, RunRecord, load_records, save_record
from ssfl.deploy.transport.control import Control, Value

RETURN_LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
"""Environment in which glibc's malloc returns large blocks when they are freed (messages in transit)."""
START_SECONDS = 60.0
WATCH_SECONDS = 1.0
UNFINISHED = ("pending", "starting", "running")
"""Flower's statuses of a run whose process exists or is about to be started."""
FIRST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class ServerOptions:
    """Options of `ssfl deploy server`."""

    folder: Path
    host: str
    port: int
    secure: bool = True
    control_from: tuple[str, ...] = ()
    restarts: int = 20
    """How many times in a row a run is resumed without finishing a round."""

    @property
    def root_certificates(self) -> Path | None:
        """None without TLS."""
        return self.folder / keys.CA_CERTIFICATE if self.secure else None

    @property
    def local_address(self) -> str:
        """HOST:PORT at which this machine reaches the SuperLink."""
        return join_address(ANY_ADDRESS.get(self.host, self.host), self.port)


def options_of(
    folder: Path, host: str, port: int, insecure: bool, control_from: Sequence[str], restarts: int
) -> ServerOptions:
    """Checked options. Raises DeployError: insecure is for loopback only, secrets must be private.

    port: 0 is the port of the address at `ssfl deploy init`.
    """
    if not insecure:
        keys.check_server_files(folder)
        existing_roster(folder)
    for network in control_from:
        network_of(network)
    address = ""
    with contextlib.suppress(*((DeployError,) if insecure else ())):
        address = server_address(folder)
    host = host_name(host) if host else ("127.0.0.1" if insecure else "0.0.0.0")
    port = port or (split_address(address)[1] if address else 8000)
    if insecure and not is_loopback(join_address(host, port)):
        raise DeployError(
            f"--insecure --host {host}: without TLS the server must listen on loopback only; omit --insecure"
        )
    return ServerOptions(folder.resolve(), host, port, not insecure, tuple(control_from), restarts)


@final
class Server:
    """The processes of one server; `processes` ends them."""

    def __init__(self, options: ServerOptions, processes: ProcessGroup, log: EventLog) -> None:
        self.options, self.processes, self.log = options, processes, log
        self.app = write_app(options.folder / "app")
        self.superlink: subprocess.Popen[bytes] | None = None
        self.superexec: subprocess.Popen[bytes] | None = None
        self._registered = False
        """Whether the SuperLink has the keys of the roster since it was started."""
        self._tries: dict[str, tuple[int, int]] = {}
        self._next_try: dict[str, float] = {}

    @property
    def logs(self) -> Path:
        """Folder of the log files of the child processes."""
        return self.options.folder / "logs"

    def control(self) -> Control:
        """A connection to the SuperLink."""
        return Control(self.options.local_address, self.options.root_certificates)

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Start SuperLink and SuperExec and register the sites. Raises DeployError if one does not start."""
        options = self.options
        check_address(options.host, options.port)
        write_flower_config(options.folder / "flwr", options.local_address, options.root_certificates)
        if not options.secure and not (options.folder / keys.EXECUTOR_SECRET).is_file():
            keys.make_executor_secret(options.folder)
        self._registered = False
        self.superlink = self.processes.start(
            "superlink", self._superlink_words(), self.logs / "superlink.log", RETURN_LARGE_BLOCKS
        )
        host, port = split_address(options.local_address)
        wait_for_port(host, port, self.superlink, START_SECONDS, self.logs / "superlink.log")
        self._start_superexec()
        self.register_all()
        self.log.info(
            "listening",
            f"{join_address(options.host, options.port)}, {'TLS and node keys' if options.secure else 'insecure'}",
        )

    def _start_superexec(self) -> None:
        environment = {} if self.options.secure else {OPEN_VARIABLE: "1"}
        self.superexec = self.processes.start(
            "superexec", self._superexec_words(), self.logs / "superexec.log", environment
        )

    def _superlink_words(self) -> list[str]:
        options = self.options
        words = [sys.executable, "-m", "ssfl.deploy.transport.superlink", "--parent-pid", str(os.getpid())]
        for network in options.control_from:
            words += ["--control-from", network]
        words += ["--", "--host", options.host, "--port", str(options.port), "--isolation", "process"]
        words += ["--superexec-auth-secret-file", str(options.folder / keys.EXECUTOR_SECRET)]
        words += ["--disable-runtime-dependency-installation"]
        if not options.secure:
            return [*words, "--insecure"]
        for flag, name in (
            ("--ssl-ca-certfile", keys.CA_CERTIFICATE),
            ("--ssl-certfile", keys.SERVER_CERTIFICATE),
            ("--ssl-keyfile", keys.SERVER_KEY),
        ):
            words += [flag, str(options.folder / name)]
        return [*words, "--enable-supernode-auth"]

    def _superexec_words(self) -> list[str]:
        options = self.options
        words = [str(Path(sys.executable).parent / "flower-superexec")]
        words += ["--runtime-api-address", options.local_address, "--parent-pid", str(os.getpid())]
        words += ["--superexec-auth-secret-file", str(options.folder / keys.EXECUTOR_SECRET)]
        certificates = options.root_certificates
        return [
            *words,
            *(["--insecure"] if certificates is None else ["--root-certificates", str(certificates)]),
        ]

    def register_all(self) -> None:
        """Register every key of the roster and unregister all others. Raises DeployError."""
        if not self.options.secure:
            self._registered = True
            return
        members = load_roster(self.options.folder)
        control = self.control()
        try:
            for member in members:
                control.register(self.options.folder / "keys" / f"{member.name}.pub", member.name)
            for node in control.unregister_others({member.key for member in members}):
                self.log.info("unregistered", f"{node.name or node.node} is no longer on the roster")
            self._registered = True
        finally:
            control.close()

    def run(self, config: dict[str, Value]) -> str:
        """Start a run. Returns Flower's run id."""
        control = self.control()
        try:
            return control.start(self.app, config)
        finally:
            control.close()

    # ── watch ────────────────────────────────────────────────────────────────────────────────────────────────────
    def watch(self, stop: threading.Event) -> None:
        """Until `stop` is set: restart processes that died and resume runs that were interrupted."""
        pause = FIRST_PAUSE_SECONDS
        while not stop.wait(WATCH_SECONDS):
            try:
                self.check_processes()
                pause = FIRST_PAUSE_SECONDS
            except (DeployError, OSError) as error:  # OSError: a full disk, or no process can be started
                self.log.error("check_failed", f"{error}; trying again in {pause:.0f} s")
                stop.wait(pause)
                pause = min(60.0, 2 * pause)

    def check_processes(self) -> None:
        """Restart processes that died and resume interrupted runs, once. Raises DeployError if a restart fails."""
        if self.superlink is None or self.superlink.poll() is not None:
            self._restart_superlink()
        elif self.superexec is None or self.superexec.poll() is not None:
            self.log.error(
                "superexec_died", f"{self._end_of(self.superexec, 'superexec')}; starting it again"
            )
            if self.superexec is not None:
                self.processes.forget(self.superexec)
            self._start_superexec()
        if not self._registered:  # a restart failed after the SuperLink's process had started
            self.register_all()
        for record in load_records(self.options.folder):
            if record.active and not self._alive(record):
                self._resume(record)

    def _end_of(self, child: subprocess.Popen[bytes] | None, name: str) -> str:
        """How a process ended, for the log."""
        code = "not started" if child is None else f"exit code {child.returncode}"
        return f"{code}; last line of its log: {last_line(self.logs / f'{name}.log')}"

    def _restart_superlink(self) -> None:
        self.log.error("superlink_died", f"{self._end_of(self.superlink, 'superlink')}; starting it again")
        for child in (self.superexec, self.superlink):
            if child is not None:
                self.processes.stop(child, 1.0)
                self.processes.forget(child)
        for record in load_records(self.options.folder):
            if record.active and self._has_process(record):
                with contextlib.suppress(ProcessLookupError):  # without its SuperLink it would never end
                    os.kill(record.pid, signal.SIGKILL)
        self.start()

    def _alive(self, record: RunRecord) -> bool:
        """Whether the run's process exists: its process id, and our mark in its environment."""
        if not record.pid:  # Flower is starting it
            return self._flower_status(record) in UNFINISHED
        return self._has_process(record)

    def _has_process(self, record: RunRecord) -> bool:
        if not record.pid:
            return False
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{record.pid}/environ").read_bytes()
            stat = Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()
            return stat[0] != "Z" and f"{MARK}={self.processes.mark}".encode() in environment
        return False

    def _resume(self, record: RunRecord) -> None:
        """Resume from the last checkpoint, unless a user stopped the run or it makes no progress."""
        if time.monotonic() < self._next_try.get(record.run, 0.0):
            return
        if self._stopped_by_a_user(record):
            save_record(self.options.folder, replace(record, status="stopped", reason="stopped by a user"))
            self.log.info("run_stopped", "by a user", run=record.run)
            return
        tries, last = self._tries.get(record.run, (0, -1))
        tries = tries + 1 if record.round == last else 1
        self._tries[record.run] = tries, record.round
        if tries > self.options.restarts:
            reason = f"interrupted {tries} times in round {record.round + 1}"
            reason += f" ({record.reason})" if record.reason else ""
            save_record(self.options.folder, replace(record, status="failed", reason=reason))
            self.log.error("run_given_up", reason, run=record.run)
            return
        self._next_try[record.run] = time.monotonic() + min(60.0, 2.0**tries)
        # Without a folder there is no checkpoint: the run starts from its words, under the same name.
        number = self.run({"resume": record.folder} if record.folder else {"words": shlex.join(record.words)})
        save_record(self.options.folder, replace(record, pid=0, flower_run=number))
        self.log.warning("run_resumed", f"after round {record.round}, as Flower run {number}", run=record.run)

    def _stopped_by_a_user(self, record: RunRecord) -> bool:
        return self._flower_status(record) == "finished:stopped"

    def _flower_status(self, record: RunRecord) -> str:
        """Flower's status of the run's last attempt; empty if its SuperLink has been started since."""
        control = self.control()
        try:
            return control.runs().get(record.flower_run, "")
        finally:
            control.close()


def new_process_group(options: ServerOptions, remove: Path | None = None) -> ProcessGroup:
    """An empty group for the server's processes."""
    return ProcessGroup(flower_environment(options.folder), remove)
