"""Sweeps, with a stand-in for the program that runs a cell: it writes what a run folder would hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssfl import sweep
from ssfl.config import ConfigError

STAND_IN = """
import json, pathlib, sys
verb, *words = sys.argv[1:]
calls = pathlib.Path("calls.txt")
with calls.open("a") as f: f.write(json.dumps([verb, *words]) + "\\n")
mode = pathlib.Path("mode.txt").read_text() if pathlib.Path("mode.txt").exists() else ""
if verb == "run":
    said = {w.partition("=")[0]: w.partition("=")[2].strip("'") for w in words}
    folder = pathlib.Path(said["experiment.output_dir"]) / said["wandb.exp_name"] / "20300101-000000"
else:
    folder = pathlib.Path(words[0])
if mode.startswith("bad ") and mode[4:] in str(folder): sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("")
print("a line that is no JSON")
print(json.dumps({"event": "round", "round": 1, "global_accuracy": 0.5}))
if mode == "fail once" and verb == "run": sys.exit(1)
if mode == "fail always": sys.exit(1)
(folder / "model.safetensors").write_text("")
"""

WORDS = ["preset=digits", "algorithm=ssfl,fedavg", "model.dense_ratio=0.5,0.1"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stand-in, with the working directory in a fresh folder; the comparison is left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.py").write_text(STAND_IN)
    return [sys.executable, "cell.py"]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """What was handed to the report."""
    seen: list[tuple[list[str], Path]] = []

    def compare(folders: Sequence[Path], out: Path) -> int:
        seen.append(([folder.parent.name for folder in folders], out))
        return 0

    monkeypatch.setattr(sweep, "compare", compare)
    return seen


def _calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls.txt").read_text().splitlines()]


def _folder() -> Path:
    (folder,) = Path("outputs/digits").glob("sweep-*")
    return folder


def test_every_cell_runs_once(
    command: list[str], compared: list[tuple[list[str], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.start_sweep(WORDS, command) == 0
    names = ["ssfl_dense_ratio0.5", "ssfl_dense_ratio0.1", "fedavg"]
    assert [call[0] for call in _calls()] == ["run"] * 3
    assert compared == [(names, _folder() / "report")]
    said = capsys.readouterr().out
    assert "[3/3] algorithm=fedavg: done" in said
    assert "run once" in said
    assert "0.500" in said
    assert (_folder() / "logs" / "fedavg.txt").read_text().startswith("a line that is no JSON")


def test_a_failed_cell_is_resumed_once(
    command: list[str], compared: list[tuple[list[str], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mode.txt").write_text("fail once")
    assert sweep.start_sweep(WORDS, command) == 0
    assert [call[0] for call in _calls()] == ["run", "resume"] * 3
    assert "trying once more" in capsys.readouterr().err


def test_cells_that_fail_twice_are_named_and_taken_up_again(
    command: list[str], compared: list[tuple[list[str], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mode.txt").write_text("fail always")
    assert sweep.start_sweep(WORDS, command) == 1
    assert capsys.readouterr().err.count("failed twice: ") == 3
    assert compared == []
    Path("mode.txt").write_text("")
    assert sweep.resume_sweep(_folder(), command) == 0
    assert [call[0] for call in _calls()[-3:]] == ["resume"] * 3
    before = len(_calls())
    assert sweep.resume_sweep(_folder(), command) == 0  # everything has ended: nothing runs
    assert len(_calls()) == before
    assert len(compared) == 2


def test_bad_input_is_not_tried_again(command: list[str], compared: list[tuple[list[str], Path]]) -> None:
    Path("mode.txt").write_text("bad fedavg")
    assert sweep.start_sweep(WORDS, command) == 1
    assert len(_calls()) == 3
    assert len(compared[0][0]) == 2


def test_nothing_is_written_for_an_impossible_sweep(command: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        sweep.start_sweep(["model.dense_ratio=0.5,7"], command)
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no readable sweep\.json"):
        sweep.resume_sweep(tmp_path)


def test_two_sweeps_never_share_a_folder(command: list[str], compared: list[tuple[list[str], Path]]) -> None:
    for _ in range(2):
        assert sweep.start_sweep(["preset=digits", "experiment.seed=1,2"], command) == 0
    assert len(list(Path("outputs/digits").glob("sweep-*"))) == 2


SLOW_CELL = """
import pathlib, signal, sys, time
pathlib.Path("started.txt").write_text(str(__import__("os").getpid()))
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("ended.txt").write_text("cleanly")
    sys.exit(130)
"""


def test_ctrl_c_ends_the_cell_too(tmp_path: Path) -> None:
    (tmp_path / "cell.py").write_text(SLOW_CELL)
    code = (
        "import sys; from ssfl.sweep import start_sweep; "
        "sys.exit(start_sweep(['preset=digits', 'experiment.seed=1,2'], [sys.executable, 'cell.py']))"
    )
    paths = os.pathsep.join(
        filter(None, [str(Path(sweep.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 30
    while not (tmp_path / "started.txt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does it: the whole group
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert "ssfl sweep --resume" in said
    assert "Traceback" not in said
    assert (tmp_path / "ended.txt").read_text() == "cleanly"
