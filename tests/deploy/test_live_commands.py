"""`status`, `register`, `revoke`, `run` and `stop` against a real SuperLink, which listens on IPv6 here."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.cli import main
from ssfl.deploy.commands.run import control_of
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.federation.roster import fingerprint
from ssfl.deploy.log import EventLog
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment
from ssfl.deploy.server.run_record import load_records
from ssfl.deploy.server.supervisor import Server, ServerOptions

SECONDS = 180.0


@dataclass
class Started:
    """A server of two sites that do not run."""

    folder: Path
    server: Server
    processes: ProcessGroup
    capture: pytest.CaptureFixture[str]

    def run(self, verb: str, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a verb."""
        self.capture.readouterr()
        code = main(["deploy", verb, "--folder", str(self.folder), *words])
        captured = self.capture.readouterr()
        return code, captured.out, captured.err

    def status(self) -> dict[str, Any]:
        code, out, _ = self.run("status", "--json")
        assert code == 0
        return dict(json.loads(out))

    def online(self) -> dict[str, str]:
        """Name -> SHA-256 of the key, of the sites that the SuperLink knows."""
        return {site["name"]: site["key"] for site in self.status()["sites"]}


def free_ipv6_port() -> int:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine ({error.strerror})")


@pytest.fixture
def started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Started]:
    port = free_ipv6_port()
    make_federation(tmp_path / "f", ["a", "b"], f"[::1]:{port}")
    folder = tmp_path / "f" / "server"
    processes = ProcessGroup(flower_environment(folder))
    options = ServerOptions(folder, "::", port)
    try:
        server = Server(options, processes, EventLog("server", folder / "supervisor.jsonl", None))
        server.start()
        yield Started(folder, server, processes, capsys)
    finally:
        processes.close()


def test_sites_are_registered_and_revoked_while_the_server_runs(started: Started, tmp_path: Path) -> None:
    assert set(started.online()) == {"a", "b"}
    public = {}
    for name in ("c", "new_a"):
        assert main(["deploy", "key", str(tmp_path / name)]) == 0
        public[name] = tmp_path / name / keys.SITE_PUBLIC_KEY
    code, out, err = started.run("register", "c", str(public["c"]))
    assert (code, err) == (0, "")
    assert "c is client 2" in out
    assert started.online()["c"] == fingerprint(public["c"])
    code, _, err = started.run("register", "a", str(public["new_a"]), "--client", "0")
    assert (code, err) == (0, "")
    assert started.online()["a"] == fingerprint(public["new_a"])
    assert set(started.online()) == {"a", "b", "c"}, "the replaced key is unknown at once"
    code, _, err = started.run("revoke", "c")
    assert (code, err) == (0, "")
    assert set(started.online()) == {"a", "b"}

    started.processes.close()
    code, out, err = started.run("status")
    assert code == 1
    assert "SuperLink: down" in out
    assert "run " not in out
    assert len(err.splitlines()) == 1
    assert "cannot be reached" in err
    assert "ssfl deploy server --folder" in err
    code, out, _ = started.run("status", "--json")
    assert code == 1
    assert json.loads(out)["superlink"].startswith("down: ")
    code, out, err = started.run("revoke", "b")
    assert code == 0
    assert "takes effect when the server starts" in err


def test_a_run_that_waits_for_its_sites_is_shown_and_stopped(started: Started) -> None:
    code, _, err = started.run("run", "--detach", "preset=digits", "deploy.start_seconds=600")
    assert code == 0
    number = err.split()[-1]
    end = time.monotonic() + SECONDS
    while not load_records(started.folder):
        assert time.monotonic() < end, (started.folder / "logs" / "superexec.log").read_text()
        time.sleep(0.2)
    status = started.status()
    assert status["certificate_ends_utc"] is not None
    (run,) = status["runs"]
    assert (run["status"], run["flower_run"]) == ("waiting", number)
    _, out, _ = started.run("status")
    assert f"run {run['run']}: waiting, round 0 of" in out
    assert "site a: offline" in out
    assert "certificate: valid for 8" in out

    code, _, err = started.run("stop", "no_such_run")
    assert (code, len(err.splitlines())) == (2, 1)
    code, out, err = started.run("stop", run["run"])
    assert (code, err) == (0, "")
    assert "nothing to resume" in out
    with control_of(started.folder) as control:
        assert control.runs()[number] == "finished:stopped"
    while started.status()["runs"][0]["status"] != "stopped":
        started.server.check_processes()
        assert time.monotonic() < end
        time.sleep(0.2)
