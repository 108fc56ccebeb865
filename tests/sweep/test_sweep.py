"""Sweeps, with a substitute for the program that runs a cell: it writes the files of a run folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from ssfl.config import ConfigError
from ssfl.report.studies.choice import Choice, Trial
from ssfl.run_folder import FolderError, owned
from ssfl.sweep import sweep
from ssfl.sweep.cells import SweepCell
from ssfl.sweep.choose import Search
from ssfl.sweep.results import Finished
from ssfl.sweep.runner import Runner
from tests.support.paths import ROOT

STAND_IN = """
import json, pathlib, sys
verb, *words = sys.argv[1:]
calls = pathlib.Path("calls.txt")
with calls.open("a") as f: f.write(json.dumps([verb, *words]) + "\\n")
mode = pathlib.Path("mode.txt").read_text() if pathlib.Path("mode.txt").exists() else ""
if verb == "run":
    given = {w.partition("=")[0]: w.partition("=")[2].strip("'") for w in words}
    folder = pathlib.Path(given["experiment.output_dir"]) / given["wandb.exp_name"] / "20300101-000000"
else:
    folder = pathlib.Path(words[0])
if mode.startswith("bad ") and mode[4:] in str(folder): sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("")
print("a line that is no JSON")
print(json.dumps({"event": "round", "round": 1, "global_accuracy": 0.5}))
if mode == "fail once" and verb == "run": sys.exit(1)
if mode == "fail always": sys.exit(1)
(folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
"""

DIGITS_RESULTS = ROOT / "experiments" / "codec_accuracy" / "digits" / "runs.json"
WORDS = ["preset=digits", "algorithm=ssfl,fedavg", "model.dense_ratio=0.5,0.1"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The substitute program, in a new working directory, without the comparison."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.py").write_text(STAND_IN)
    return [sys.executable, "cell.py"]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """The arguments of the report."""
    seen: list[tuple[list[str], Path]] = []

    def compare(folders: Sequence[Path], out: Path) -> int:
        seen.append(([folder.parent.name for folder in folders], out))
        return 0

    monkeypatch.setattr(sweep, "compare", compare)
    return seen


def _calls() -> list[list[str]]:
    if not Path("calls.txt").exists():
        return []
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
    printed = capsys.readouterr().out
    assert "[3/3] algorithm=fedavg: done" in printed
    assert "run once" in printed
    assert "0.500" in printed
    assert (_folder() / "logs" / "fedavg.txt").read_text().startswith("a line that is no JSON")


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (["experiment.seed=1,2"], []),
        (["experiment.seed=1,4"], ["4"]),
        (["experiment.seed=1,2", "optimizer.lr=0.07"], ["1", "2"]),
        (
            ["experiment.seed=1,2", "engine.precision=bf16"],
            ["1", "2"],
        ),
        (
            ["experiment.seed=1,2", "wandb.exp_name=another", "checkpoint.every_rounds=7"],
            [],
        ),  # no number depends on these
    ],
)
def test_cells_with_results_elsewhere_are_left_out(
    words: list[str],
    ran: list[str],
    command: list[str],
    compared: list[tuple[list[str], Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The results are those that the experiment's own lines made; their code version is named."""
    setting = ["preset=digits", "model.dense_ratio=0.5", "communication.profile=small"]
    assert sweep.start_sweep([*setting, *words], command, skip_finished=DIGITS_RESULTS) == 0
    assert f"cells have finished in {DIGITS_RESULTS} (code e5c04025175cc2c3)\n" in capsys.readouterr().out
    seeds = [
        word.partition("=")[2] for call in _calls() for word in call if word.startswith("experiment.seed")
    ]
    assert seeds == ran


def test_results_without_a_finished_run_name_no_code(
    command: list[str],
    compared: list[tuple[list[str], Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sweep, "finished_runs", lambda path: Finished((), ()))
    assert sweep.start_sweep(WORDS, command, skip_finished=DIGITS_RESULTS) == 0
    assert f"cells have finished in {DIGITS_RESULTS}\n" in capsys.readouterr().out


def test_a_cell_that_has_begun_here_is_continued_despite_results_elsewhere(
    command: list[str], compared: list[tuple[list[str], Path]]
) -> None:
    words = ["preset=digits", "communication.profile=small", "model.dense_ratio=0.5", "experiment.seed=1,4"]
    into = Path("outputs/study")
    Path("mode.txt").write_text("fail always")
    assert sweep.start_sweep(words, command, into=into) == 1
    Path("mode.txt").write_text("")
    assert sweep.start_sweep(words, command, into=into, skip_finished=DIGITS_RESULTS) == 0
    assert [call[0] for call in _calls()[-2:]] == ["resume"] * 2


@pytest.mark.parametrize(("name", "text"), [("missing", None), ("empty.json", "{}"), ("folder", "")])
def test_results_that_are_none_are_one_line(name: str, text: str | None, command: list[str]) -> None:
    path = Path(name)
    if text == "":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=name) as caught:
        sweep.start_sweep(WORDS, command, skip_finished=path)
    assert "\n" not in str(caught.value)
    assert not Path("outputs").exists()


def test_a_search_leaves_no_cell_out(command: list[str]) -> None:
    words = ["preset=digits", "optimizer.lr=0.1,0.2", "dataset.validation_portion=0.1"]
    choose = ("lr", "validation_accuracy")
    with pytest.raises(ConfigError, match="--skip-finished cannot go with --choose"):
        sweep.start_sweep(words, command, choose=choose, skip_finished=DIGITS_RESULTS)
    assert not Path("outputs").exists()


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
    assert sweep.resume_sweep(_folder(), command) == 0  # all cells have ended, so none runs
    assert len(_calls()) == before
    assert len(compared) == 2


SEARCH = ["preset=digits", "optimizer.lr=0.1,0.3", "dataset.validation_portion=0.1"]


def scored(search: Search, folder: Path, cells: Sequence[SweepCell]) -> Choice:
    """The highest rate fails; of the others the lowest is best, down to 0.01."""
    rates = sorted(float(cell.label.partition("optimizer.lr=")[2]) for cell in cells)
    trials = [Trial("", "SSFL", rate, None if rate == 0.3 else -abs(rate - 0.011), 1, 1) for rate in rates]
    return Choice(search.key, search.by, "highest", tuple(trials))


def test_a_rate_that_fails_twice_is_not_run_in_the_widenings(
    command: list[str], compared: list[tuple[list[str], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the search ends well, because its setting has a value."""
    monkeypatch.setattr(sweep, "judged", scored)
    Path("mode.txt").write_text("bad lr0.3")
    assert sweep.start_sweep(SEARCH, command, choose=("lr", "validation_accuracy")) == 0
    names = [word for call in _calls() for word in call if word.startswith("wandb.exp_name=")]
    assert sum("lr0.3'" in name for name in names) == 1
    assert len(names) == len(set(names)) > 3
    assert (_folder() / "choice.json").exists()


def test_a_search_without_room_chooses_nothing(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Runner, cells: Sequence[SweepCell]) -> list[SweepCell]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Runner, "run", full)
    assert sweep.start_sweep(SEARCH, command, choose=("lr", "validation_accuracy")) == 1
    assert not (_folder() / "choice.json").exists()
    said = capsys.readouterr().err
    assert said.startswith("ssfl: No space left on device")
    assert "continue with: ssfl sweep --resume" in said


def test_a_limit_of_time_is_refused(command: list[str]) -> None:
    with pytest.raises(
        ConfigError, match="stop_after_seconds=60: a sweep runs until its cells have finished"
    ):
        sweep.start_sweep([*WORDS, "checkpoint.stop_after_seconds=60"], command)
    assert not Path("outputs").exists()


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
    with pytest.raises(ConfigError, match=r"not a sweep's folder \(no sweep\.json there\)"):
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
        "import sys; from ssfl.sweep.sweep import start_sweep; "
        "sys.exit(start_sweep(['preset=digits', 'experiment.seed=1,2'], [sys.executable, 'cell.py']))"
    )
    paths = os.pathsep.join(
        filter(None, [str(Path(sweep.__file__).parents[2]), os.environ.get("PYTHONPATH")])
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
    os.killpg(parent.pid, signal.SIGINT)  # to the whole process group, like a terminal
    _, printed = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert "ssfl sweep --resume" in printed
    assert "Traceback" not in printed
    assert (tmp_path / "ended.txt").read_text() == "cleanly"


# ── two sweeps at once, and runs left by a sweep that died ───────────────────────────────────────────────────────────
WHOLE_MODEL = (2).to_bytes(8, "little") + b"{}"


def test_a_folder_belongs_to_one_sweep_at_a_time(
    command: list[str], compared: list[tuple[list[str], Path]], tmp_path: Path
) -> None:
    into = tmp_path / "mine"
    (into / "logs").mkdir(parents=True)
    with owned(into):
        with pytest.raises(FolderError, match="another process is running this"):
            sweep.start_sweep(WORDS, command, into=into)
        assert not Path("calls.txt").exists()
    assert sweep.start_sweep(WORDS, command, into=into) == 0
    with owned(into), pytest.raises(FolderError, match="another process"):
        sweep.resume_sweep(into, command)
    assert sweep.resume_sweep(into, command) == 0


def left_at_work(into: Path, command: Sequence[str]) -> Path:
    """A sweep with one open cell; returns the folder of its run, which another process still computes."""
    assert sweep.start_sweep(WORDS, command, into=into) == 0
    Path("calls.txt").unlink()
    folder = next(into.glob("runs/fedavg/*"))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("ends", ["well", "killed"])
def test_a_cell_that_still_computes_is_waited_for(
    ends: str,
    command: list[str],
    compared: list[tuple[list[str], Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = left_at_work(tmp_path / "mine", command)
    with ExitStack() as lock:
        lock.enter_context(owned(folder))

        def end() -> None:
            if ends == "well":
                (folder / "model.safetensors").write_bytes(WHOLE_MODEL)
            lock.close()

        timer = threading.Timer(0.5, end)
        timer.start()
        assert sweep.resume_sweep(tmp_path / "mine", command) == 0
        timer.join()
    assert "FAILED" not in capsys.readouterr().out
    if ends == "well":
        assert not Path("calls.txt").exists()
    else:  # it wrote at most a checkpoint
        assert [call[:2] for call in _calls()] == [["resume", str(folder)]]


def test_no_room_for_the_report_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folders: Sequence[Path], out: Path) -> int:
        raise OSError(28, os.strerror(28), str(out))

    monkeypatch.setattr(sweep, "compare", full)
    into = tmp_path / "mine"
    assert sweep.start_sweep(WORDS, command, into=into) == 1
    err = capsys.readouterr().err
    assert f"{into / 'report'}: No space left on device" in err
    assert f"ssfl sweep --resume {into}" in err
