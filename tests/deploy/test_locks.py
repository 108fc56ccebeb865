"""A second process of a site, or of a server, is refused before it starts anything."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssfl.cli import main
from ssfl.cli_parser import build_parser
from ssfl.deploy.errors import DeployError
from ssfl.deploy.processes.locks import one_server_process, one_site_process
from ssfl.deploy.server.one_run import one_run

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.commands.site import run_site
from ssfl.deploy.federation.folders import make_federation

HOLD = """
import sys
from pathlib import Path
from ssfl.deploy.processes.locks import one_site_process
with one_site_process(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("state", "key"), [(True, False), (False, True), (True, True)])
def test_a_second_process_is_refused_until_the_first_is_killed(
    state: bool, key: bool, tmp_path: Path
) -> None:
    folder, file = tmp_path / "state", tmp_path / "site.key"
    folder.mkdir()
    file.write_text("key")
    words = [sys.executable, "-c", HOLD, str(folder), str(file)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(DeployError, match="another process of this site uses it; stop that process"),
            one_site_process(folder if state else None, file if key else None),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with one_site_process(folder, file):
        pass
    with one_site_process(folder, file):  # and it is released by the end of the block
        pass


def test_the_command_refuses_it_before_it_reads_the_data(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    folder = tmp_path / "f" / "sites" / "a"
    words = ["deploy", "site", "--folder", str(folder), "--data", "nowhere.npz"]
    (folder / "state").mkdir()
    with (
        one_site_process(folder / "state", None),
        pytest.raises(DeployError, match=r"a/state: another process"),
    ):
        run_site(build_parser().parse_args(words))
    other = [*words, "--state", str(tmp_path / "other")]
    with one_site_process(None, folder / "site.key"), pytest.raises(DeployError, match=r"site\.key: another"):
        run_site(build_parser().parse_args(other))


def test_a_file_system_without_locks_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a site, and by a server for its run."""

    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with one_site_process(tmp_path, None), one_run(tmp_path, ""):
        pass


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(DeployError, match=f"--state .*: {os.strerror(21)}"), one_site_process(tmp_path, None):
        pass


def test_a_second_server_with_the_same_folder_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would restart its SuperLink for ever, and resume the runs of the first."""
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    folder = tmp_path / "f" / "server"
    with one_server_process(folder):
        before = sorted(folder.rglob("*"))
        assert main(["deploy", "server", "--folder", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--folder {folder}: a server with this folder is running; stop it first" in line
    assert sorted(folder.rglob("*")) == before
