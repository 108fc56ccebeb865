"""Addresses to listen on are checked before a child process is started; what is shown of a child's output."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.cli import main
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.processes.process_group import check_address, free_port, last_line
from ssfl.deploy.server.run_record import RunRecord, save_record


def test_a_free_address_is_accepted_and_stays_free() -> None:
    port = free_port()
    for _ in range(2):
        check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_on_which_another_process_listens_is_refused(host: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DeployError, match=f"^{host}:{port}: another process listens on this port"):
            check_address(host, port)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", r"192\.0\.2\.1:\d+: not an address of this machine"),  # reserved for documentation
        ("nowhere.invalid", r"--host nowhere\.invalid: cannot be resolved"),
    ],
)
def test_an_address_of_another_machine_is_refused(host: str, reason: str) -> None:
    with pytest.raises(DeployError, match=reason):
        check_address(host, free_port())


def test_a_server_on_a_port_in_use_ends_in_one_line_and_leaves_its_files_as_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower's process would find out after seconds; until then the other process's port looks like its own."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        make_federation(tmp_path / "f", ["a"], f"127.0.0.1:{port}")
        folder = tmp_path / "f" / "server"
        assert main(["deploy", "server", "--folder", str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"ssfl: 0.0.0.0:{port}: another process listens on this port; stop it, or give")
    assert not (folder / "flwr").exists()
    assert not (folder / "logs").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--folder", "nowhere", "--insecure"], "--folder nowhere: no such folder"),
        (
            ["--folder", "{server}", "--control-from", "x"],
            "--control-from x: must be an address or a network",
        ),
        (["--folder", "nowhere"], "nowhere/server.key: No such file or directory"),
    ],
)
def test_bad_arguments_of_server_are_one_line(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_federation(tmp_path / "f", [], "127.0.0.1:8000")
    words = [word.format(server=tmp_path / "f" / "server") for word in words]
    assert main(["deploy", "server", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("sites", ["-1", "10001", "9" * 30])
def test_a_number_of_sites_out_of_range_is_refused_at_once(
    sites: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "init", str(tmp_path / "f"), f"--sites={sites}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"ssfl: --sites {sites}: must be a number from 0 to 10000, or names: a,b"
    assert not (tmp_path / "f").exists()


def test_a_run_that_has_ended_is_not_stopped_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record(tmp_path, RunRecord("run-1", (), status="failed"))
    assert main(["deploy", "stop", "run-1", "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "ssfl: run-1: is not in progress; it is failed\n"


def test_stop_in_another_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "stop", "run-1", "--folder", str(tmp_path)]) == 2
    assert "server.json: cannot be read (No such file or directory); give --folder" in capsys.readouterr().err


def test_the_last_line_of_a_log_has_no_colours(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n\x1b[92mINFO \x1b[0m: ready\n")
    assert last_line(tmp_path / "log") == "INFO : ready"


def test_an_interrupted_run_command_says_that_the_run_continues(tmp_path: Path) -> None:
    """In a process of its own: the command's handlers are for its main thread."""
    program = f"""
import contextlib, sys
from ssfl.deploy.commands import follow, run
class Control:
    def start(self, app, config): return "7"
run.control_of = lambda *arguments: contextlib.nullcontext(Control())
def interrupted(*arguments): raise KeyboardInterrupt
follow.follow = interrupted
from ssfl.cli import main
sys.exit(main(["deploy", "run", "--folder", {str(tmp_path)!r}, "preset=digits"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130
    assert "ssfl: the run continues on the server; `ssfl deploy status` shows it" in done.stderr
