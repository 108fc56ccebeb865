"""Addresses and files of a server are checked before a child process starts; what is shown of a child's output."""

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


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("server.json", b"{", "server.json: cannot be read"),
        ("server.crt", b"garbage", "server.crt: is not a certificate in PEM format"),
        ("server.key", b"garbage", "server.key: is not a private key in PEM format"),
        ("ca.crt", b"", "ca.crt: is not a certificate in PEM format"),
        ("roster.json", b"{", "roster.json: cannot be read as a roster"),
        ("roster.json", None, "roster.json: is missing; restore it from a backup"),
    ],
)
def test_a_damaged_file_of_the_servers_folder_is_named_before_anything_starts(
    name: str, raw: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_federation(tmp_path / "f", ["a"], f"127.0.0.1:{free_port()}")
    folder = tmp_path / "f" / "server"
    if raw is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(raw)
    assert main(["deploy", "server", "--folder", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ssfl: {folder}/{reason}")
    assert not (folder / "logs").exists()


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("f", "other"):
        make_federation(tmp_path / name, [], "127.0.0.1:8000")
    folder = tmp_path / "f" / "server"
    (folder / "server.key").write_bytes((tmp_path / "other" / "server" / "server.key").read_bytes())
    assert main(["deploy", "server", "--folder", str(folder)]) == 2
    assert "server.key: is not the key of server.crt" in capsys.readouterr().err


def test_a_lost_roster_gives_no_client_number_to_a_second_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    folder = tmp_path / "f" / "server"
    (folder / "roster.json").unlink()
    before = sorted(folder.rglob("*"))
    assert main(["deploy", "key", str(tmp_path / "b")]) == 0
    assert main(["deploy", "register", "b", str(tmp_path / "b" / "site.pub"), "--folder", str(folder)]) == 2
    assert "roster.json: is missing; restore it from a backup" in capsys.readouterr().err
    assert main(["deploy", "revoke", "a", "--folder", str(folder)]) == 2
    assert sorted(folder.rglob("*")) == before
