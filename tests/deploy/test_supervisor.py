"""The supervisor starts runs again: under their name, not twice, and a limited number of times."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.commands import status
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.roster import Member
from ssfl.deploy.processes.process_group import ProcessGroup
from ssfl.deploy.server import supervisor
from ssfl.deploy.server.run_record import RunRecord, load_records, save_record
from ssfl.deploy.server.supervisor import Server, ServerOptions
from tests.deploy.fake_fleet import listed_log

NO_PROCESS = 1 << 30
"""Above every process id of Linux."""


class Alive:
    """A child process that runs."""

    def poll(self) -> None:
        return None


class FakeControl:
    """A SuperLink that knows runs by their status."""

    def __init__(self, statuses: dict[str, str]) -> None:
        self.statuses = statuses

    def runs(self) -> dict[str, str]:
        return self.statuses

    def close(self) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server whose processes are not started; time passes when a test says so."""
    processes = ProcessGroup({})
    made = Server(ServerOptions(tmp_path, "127.0.0.1", 1, secure=False), processes, listed_log([]))
    made.superlink = made.superexec = cast(Any, Alive())
    yield made
    processes.close()


def started(
    server: Server, statuses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> list[Mapping[str, Any]]:
    """The configurations of the runs that the server starts; their processes die at once."""
    configs: list[Mapping[str, Any]] = []

    def run(config: Mapping[str, Any]) -> str:
        configs.append(config)
        return f"again-{len(configs)}"

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(server, "control", lambda: FakeControl(statuses))
    return configs


def waiting(server: Server, **changes: Any) -> RunRecord:
    """A run that waits for sites, whose process has died."""
    home, record = server.options.folder, RunRecord("run-1", ("a=b c",), pid=NO_PROCESS, flower_run="1")
    return save_record(home, replace(record, **changes))


def test_a_run_without_a_folder_is_started_a_limited_number_of_times(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = started(server, {}, monkeypatch)
    waiting(server, reason="RuntimeError: x")
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    for _ in range(100):
        clock += 100.0
        server.check_processes()
        (record,) = load_records(server.options.folder)
        if not record.pid and record.status == "waiting":  # the new process dies too
            save_record(server.options.folder, replace(record, pid=NO_PROCESS))
    (record,) = load_records(server.options.folder)
    assert configs == [{"words": "'a=b c'"}] * server.options.restarts
    assert (record.run, record.status) == ("run-1", "failed")
    assert record.reason == "interrupted 21 times in round 1 (RuntimeError: x)"


def test_attempts_are_further_and_further_apart(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = started(server, {}, monkeypatch)
    waiting(server)
    clock, at = 1000.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    while len(configs) < 5:
        before = len(configs)
        server.check_processes()
        at += [clock] * (len(configs) - before)
        (record,) = load_records(server.options.folder)
        save_record(server.options.folder, replace(record, pid=NO_PROCESS))
        clock += 1.0
    assert [b - a for a, b in itertools.pairwise(at)] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("status", "again"),
    [("running", 0), ("starting", 0), ("pending", 0), ("finished:failed", 1), ("", 1)],
)
def test_a_process_that_takes_long_to_start_is_not_started_twice(
    status: str, again: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower knows it, long before it has written its process id; a SuperLink that was restarted does not."""
    configs = started(server, {"1": status} if status else {}, monkeypatch)
    waiting(server, pid=0, status="running", folder="outputs/run")
    server.check_processes()
    assert configs == [{"resume": "outputs/run"}] * again


def test_a_dead_superlink_is_started_again_while_a_run_has_no_process_yet(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process id 0 is none: a signal to it would end the supervisor itself. The SuperLink cannot be asked then."""
    signals: list[int] = []
    starts: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(pid))
    monkeypatch.setattr(server, "start", lambda: starts.append(1))
    configs = started(server, {}, monkeypatch)
    up = FakeControl({})
    monkeypatch.setattr(server, "control", lambda: up if starts else pytest.fail("the SuperLink is down"))
    server.superlink = server.superexec = None
    waiting(server, pid=0)
    server.check_processes()
    assert starts == [1]
    assert signals == []
    assert configs == [{"words": "'a=b c'"}], "the new SuperLink does not know the run"


def test_a_run_whose_process_has_died_can_be_stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower knows it as finished, or not at all, and would refuse to stop it; another run can then start."""
    configs = started(server, {"1": "finished:failed"}, monkeypatch)
    waiting(server)
    control = FakeControl({"1": "finished:failed"})
    monkeypatch.setattr(status, "control_of", lambda folder: contextlib.nullcontext(control))
    assert status.stop_run(argparse.Namespace(run="run-1", folder=server.options.folder)) == 0
    assert capsys.readouterr().out == "stopped before its first round; there is nothing to resume\n"
    server.check_processes()
    assert configs == []
    assert load_records(server.options.folder)[0].status == "stopped"


def test_a_record_that_was_being_written_when_its_process_died_counts_for_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hidden file that replaces a record is complete, but says that a finished run is running."""
    configs = started(server, {}, monkeypatch)
    waiting(server, status="running", folder="outputs/run")
    record = server.options.folder / "runs" / "run-1.json"
    record.with_name(".run-1.4711.json").write_bytes(record.read_bytes())
    waiting(server, status="finished", folder="outputs/run")
    server.check_processes()
    assert configs == []
    assert [r.status for r in load_records(server.options.folder)] == ["finished"]


def test_a_fault_of_the_machine_does_not_end_the_supervisor(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, lines = threading.Event(), list[dict[str, Any]]()
    errors = iter([OSError(errno.ENOSPC, "No space left on device"), None])

    def check_processes() -> None:
        if (error := next(errors)) is not None:
            raise error
        over.set()

    monkeypatch.setattr(supervisor, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(server, "check_processes", check_processes)
    server.log = listed_log(lines)
    server.watch(over)
    (line,) = lines
    assert line["event"] == "check_failed"
    assert "No space left on device; trying again" in line["text"]


def test_a_run_that_a_user_stopped_stays_stopped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = started(server, {"1": "finished:stopped"}, monkeypatch)
    waiting(server)
    server.check_processes()
    assert configs == []
    assert load_records(server.options.folder)[0].status == "stopped"


class Registering(FakeControl):
    """A SuperLink that cannot be reached at first, and then registers keys."""

    def __init__(self, failures: int) -> None:
        super().__init__({})
        self.failures = failures
        self.names: list[str] = []

    def register(self, public_key: Path, name: str) -> None:
        if self.failures:
            self.failures -= 1
            raise DeployError("cannot be reached")
        self.names.append(name)

    def unregister_others(self, keys: set[str]) -> tuple[()]:
        return ()


def test_sites_are_registered_until_it_succeeds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restart of a SuperLink may fail after its process has started: then nothing else is started again."""
    control = Registering(failures=2)
    roster = [Member(0, "a", "key of a")]
    monkeypatch.setattr(supervisor, "load_roster", lambda folder: roster)
    monkeypatch.setattr(server, "control", lambda: control)
    server.options = replace(server.options, secure=True)
    for _ in range(2):
        with pytest.raises(DeployError, match="cannot be reached"):
            server.check_processes()
    for _ in range(2):
        server.check_processes()
    assert control.names == ["a"]


def test_a_new_superlink_has_no_keys(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Registering(failures=0)
    monkeypatch.setattr(supervisor, "load_roster", lambda folder: [Member(0, "a", "key of a")])
    monkeypatch.setattr(server, "control", lambda: control)
    server.options = replace(server.options, secure=True)
    server.check_processes()

    def silent(*about: Any) -> None:
        raise DeployError("the SuperLink does not answer")

    monkeypatch.setattr(server.processes, "start", lambda *about: Alive())
    monkeypatch.setattr(supervisor, "check_address", lambda host, port: None)
    monkeypatch.setattr(supervisor, "wait_for_port", silent)
    with pytest.raises(DeployError, match="does not answer"):
        server.start()
    server.check_processes()
    assert control.names == ["a", "a"]
