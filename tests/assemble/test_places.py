"""Output folders that cannot be created, names that are too long, full disks: one-line errors, no lost results."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssfl import cli
from ssfl.output import OutputError, output, output_error, whole_file, write_atomically
from tests.support.run_processes import WORDS, environment, only, resumed, rows

RUN = ("run", *WORDS, "training.comm_round=1")
SWEEP = ("sweep", *WORDS, "training.comm_round=1", "experiment.seed=1,2")
PARTITION = ("partition", "preset=digits", "training.client_num_in_total=4")
CASES: dict[str, tuple[Sequence[str], str]] = {
    "a file in the way": ((*RUN, "experiment.output_dir=file"), "experiment.output_dir=file"),
    "a parent that is a file": (
        (*RUN, "experiment.output_dir=file/below"),
        "experiment.output_dir=file/below",
    ),
    "no such system folder": ((*RUN, "experiment.output_dir=/proc/none"), "experiment.output_dir=/proc/none"),
    "a long name": ((*RUN, "wandb.exp_name=" + "a" * 300), "wandb.exp_name=aaa"),
    "a sweep under a file": ((*SWEEP, "experiment.output_dir=file"), "experiment.output_dir=file"),
    "a sweep into a file": ((*SWEEP, "--into", "file/sweep"), "--into file/sweep"),
    "a sweep of a long name": ((*SWEEP, "wandb.exp_name=" + "a" * 300), "wandb.exp_name=aaa"),
    "a picture below a file": ((*PARTITION, "--out", "file/x.png"), "--out file/x.png"),
    "a picture of a long name": ((*PARTITION, "--out", "a" * 300 + ".png"), "--out aaa"),
}


@pytest.mark.parametrize("name", CASES)
def test_places_that_cannot_be_written_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    words, expected = CASES[name]
    assert cli.main(list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("ssfl: ")
    assert err.count("\n") == 1
    assert expected in err
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The folder of a run of forty rounds whose file sizes are limited to that of a few checkpoints."""
    words = (*WORDS, "training.comm_round=40", "training.frequency_of_the_test=1", "model.name=mlp")
    script = 'ulimit -f "$1"; shift; exec "$@"'
    # Blocks of 1 kB: checkpoints always fit, metrics.jsonl only for some rounds.
    command = ["bash", "-c", script, "bash", "300", sys.executable, "-m", "ssfl", "run", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    first, then = done.stderr.splitlines()[-2:]
    assert "File too large" in first
    assert str(only(tmp_path).name) in then
    return only(tmp_path)


def test_a_full_disk_stops_a_run_that_goes_on_where_there_is_room(tmp_path: Path, stopped: Path) -> None:
    done = max(row["round"] for row in rows(stopped) if row["event"] == "round")
    assert 1 <= done < 40
    assert not [path for path in stopped.rglob(".*") if path.name != ".lock"]
    assert resumed(tmp_path, stopped)[0] == 0
    assert [r["round"] for r in rows(stopped) if r["event"] == "round"] == list(range(1, 41))


def test_an_export_to_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """PyTorch's own writer would end the process."""
    words = ["run", *WORDS, "training.comm_round=1", "model.name=mlp"]
    subprocess.run(
        [sys.executable, "-m", "ssfl", *words],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    script = 'ulimit -f 20; exec "$@"'
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "ssfl", "export", str(only(tmp_path))]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 2, done.stderr
    assert "model_exported.pt2: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(only(tmp_path).glob("*exported*"))


WITHOUT_RIGHTS = (
    *("setpriv", "--bounding-set", "-dac_override,-dac_read_search"),
    *("--inh-caps", "-dac_override,-dac_read_search"),
)
"""Root as other users are: it may not read everything."""


@pytest.mark.parametrize(
    "words",
    [
        ["run", *WORDS, "dataset.name=closed.npz"],
        ["run", *WORDS, "dataset.name=closed"],
        ["run", *WORDS, "dataset.name=partly"],
        ["report", "closed"],
    ],
    ids=lambda words: words[-1],
)
def test_what_may_not_be_read_is_named(words: list[str], tmp_path: Path) -> None:
    """A folder, a file, and one of the classes of an image folder, whose images must not be missing silently."""
    image = pytest.importorskip("PIL.Image")
    np.savez(tmp_path / "closed.npz", train_x=np.zeros((4, 2)), train_y=np.arange(4) % 2)
    for folder in ("closed/a", "partly/a", "partly/b"):
        (tmp_path / folder).mkdir(parents=True)
        image.new("L", (4, 4)).save(tmp_path / folder / "1.png")
    shut = [tmp_path / name for name in ("closed.npz", "closed", "partly/b")]
    for path in shut:
        path.chmod(0)
    prefix = WITHOUT_RIGHTS if os.geteuid() == 0 else ()
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("root reads everything: needs setpriv")
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "ssfl", *words],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    for path in shut:
        path.chmod(0o700)
    assert done.returncode == 2, done.stderr
    assert "Permission denied; give this user the right to read it" in done.stderr
    assert done.stderr.count("\n") == 1


# ── the means ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_whole_files_replace_or_leave_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"1")
    with pytest.raises(OSError, match="No space") as caught:
        _fill(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"1"
    with whole_file(path) as temporary:
        temporary.write_bytes(json.dumps({"b": 2}).encode())
    assert json.loads(path.read_text()) == {"b": 2}
    assert list(tmp_path.iterdir()) == [path]


def _fill(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_and_its_folder_are_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synchronised before its rename and the folder after it; otherwise a power failure loses the name."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def renamed(path: Path, target: Any) -> Path:
        order.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "a", b"1")
    assert order == ["file", "rename", "folder"]


def test_errors_of_other_kinds_stay_errors() -> None:
    assert output_error(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert output_error(OSError("no number")) is None
    with pytest.raises(ConnectionResetError), output("a key"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with (
        pytest.raises(OutputError, match="a key=b: c/d: Permission denied; give this user"),
        output("a key=b"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "c/d")
