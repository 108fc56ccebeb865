"""Run folders: created atomically, one owner, unique names."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssfl import run_folder
from ssfl.run_folder import FolderError, check_run_folder, create_run_folder, is_finished, is_owned, owned


def test_a_folder_appears_with_its_files(tmp_path: Path) -> None:
    made = create_run_folder(tmp_path, "mine", {"config.yaml": "a: 1\n", "metrics.jsonl": ""})
    assert made.parent == tmp_path / "mine"
    assert re.fullmatch(r"\d{8}-\d{6}", made.name)
    assert (made / "config.yaml").read_text() == "a: 1\n"
    assert (made / "metrics.jsonl").read_text() == ""
    assert [p for p in made.parent.iterdir() if p != made] == []  # no temporary files remain


@pytest.mark.parametrize(("mask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_the_umask_decides_who_can_read_a_folder(
    tmp_path: Path, mask: int, folder_mode: int, file_mode: int
) -> None:
    before = os.umask(mask)
    try:
        made = create_run_folder(tmp_path, "mine", {"config.yaml": "a: 1\n"})
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == folder_mode
    assert (made / "config.yaml").stat().st_mode & 0o777 == file_mode


def test_runs_of_one_second_get_different_folders(tmp_path: Path) -> None:
    made = [create_run_folder(tmp_path, "mine", {"n": str(i)}) for i in range(5)]
    assert len(set(made)) == 5
    assert [(m / "n").read_text() for m in made] == ["0", "1", "2", "3", "4"]


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        create_run_folder(tmp_path, "mine", {"fine": "", "gone/below": ""})
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_has_one_owner_and_a_dead_one_frees_it(tmp_path: Path) -> None:
    hold = (
        "import fcntl, sys; lock = open('.lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderError, match="another process is running this"), owned(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with owned(tmp_path):
        pass


def test_a_file_system_without_locks_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as some network file systems: a run there must not be refused as if another process had the folder."""

    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with owned(tmp_path):
        assert not is_owned(tmp_path)


def test_what_is_a_run_and_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=re.escape(f"{tmp_path}: not a run folder")):
        check_run_folder(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    check_run_folder(tmp_path)
    assert not is_finished(tmp_path)
    for name in ("model.safetensors", "client_models.safetensors"):
        (tmp_path / name).write_text("")
        assert not is_finished(tmp_path)  # a power failure, or a full disk
        (tmp_path / name).write_bytes((2).to_bytes(8, "little") + b"{}")
        assert is_finished(tmp_path)
        (tmp_path / name).unlink()


def test_the_environment_is_told_in_json() -> None:
    recorded = json.loads(run_folder.environment_text({}))
    assert recorded["cores"] == os.cpu_count()
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "safetensors"} <= {k for k, v in recorded["packages"].items() if v}
