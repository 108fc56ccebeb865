"""Launchers: several cells at a time on this machine, on fake clusters, and (slow) on real ones if available."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ssfl import cli
from ssfl.config import ConfigError
from ssfl.sweep import sweep
from ssfl.sweep.cells import SweepCell
from ssfl.sweep.launchers.launcher import LauncherError, launcher
from ssfl.sweep.launchers.local import Local, Tail
from ssfl.sweep.runner import Runner

CELL = """
import json, os, pathlib, sys, time
verb, *words = sys.argv[1:]
given = {w.partition("=")[0]: w.partition("=")[2].strip("'") for w in words}
begin = time.time()
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
time.sleep(float(os.environ.get("CELL_SECONDS", "0")))
if verb == "run":
    folder = pathlib.Path(given["experiment.output_dir"]) / given["wandb.exp_name"] / "20300101-000000"
    folder.mkdir(parents=True)
else:
    folder = pathlib.Path(words[0])
(folder / "config.yaml").write_text("")
print(json.dumps({"event": "round", "round": 30, "global_accuracy": 0.25}))
if os.environ.get("FAIL_FIRST") and verb == "run": sys.exit(int(os.environ["FAIL_FIRST"]))
(folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
(folder / "when.json").write_text(json.dumps([begin, time.time(), cores]))
"""
WORDS = ["preset=digits", "experiment.seed=1,2,3"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A substitute for the program that runs a cell; no comparison is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.py").write_text(CELL)

    def compare(folders: Sequence[Path], out: Path) -> int:
        return 0

    monkeypatch.setattr(sweep, "compare", compare)
    return [sys.executable, str(tmp_path / "cell.py")]


def _when(folder: Path) -> list[list[float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/*/when.json"))]


def _most_at_once(spans: Sequence[Sequence[float]]) -> int:
    return max(sum(begin <= other[0] < end for other in spans) for begin, end, _ in spans)


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 2)])
def test_so_many_cells_at_a_time(
    command: list[str], monkeypatch: pytest.MonkeyPatch, jobs: int, most: int
) -> None:
    monkeypatch.setenv("CELL_SECONDS", "1")
    assert sweep.start_sweep(WORDS, command, sweep.Placement(jobs=jobs), Path("out")) == 0
    spans = _when(Path("out"))
    assert len(spans) == 3
    assert _most_at_once(spans) == most
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
        assert all(span[2] in (cores // jobs, -(-cores // jobs), 1) for span in spans)


def test_into_begins_goes_on_and_refuses(command: list[str]) -> None:
    out = Path("out")
    assert sweep.start_sweep(WORDS, command, into=out) == 0
    before = _when(out)
    assert sweep.start_sweep(WORDS, command, into=out) == 0
    assert _when(out) == before
    with pytest.raises(ConfigError, match=r"contains another sweep.*experiment\.seed=1,2,3"):
        sweep.start_sweep([*WORDS, "training.comm_round=2"], command, into=out)
    Path("full").mkdir()
    (Path("full") / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="not a sweep folder"):
        sweep.start_sweep(WORDS, command, into=Path("full"))
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_lines_are_products_of_their_own(command: list[str]) -> None:
    lines = [
        ["algorithm=ssfl", "optimizer.lr=0.1", "experiment.seed=1,2"],
        ["algorithm=fedavg", "optimizer.lr=0.3"],
        [
            "algorithm=fedavg",
            "optimizer.lr=0.3",
            "model.dense_ratio=0.2",
        ],  # computes the same as the line before
    ]
    assert sweep.start_sweep(["preset=digits"], command, into=Path("out"), lines=lines) == 0
    cells = json.loads((Path("out") / "sweep.json").read_text())["cells"]
    assert [cell["name"] for cell in cells] == ["ssfl_lr0.1_seed1", "ssfl_lr0.1_seed2", "fedavg_lr0.3"]
    assert cells[2]["overrides"] == ["preset=digits", "algorithm=fedavg", "optimizer.lr=0.3"]
    with pytest.raises(ConfigError, match="contains another sweep"):
        sweep.start_sweep(["preset=digits"], command, into=Path("out"), lines=lines[:1])


def test_lines_come_from_a_file(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cells.txt").write_text("# remark\n\nalgorithm=ssfl experiment.seed=1,2  # two\nalgorithm=fedavg\n")
    seen: list[object] = []

    def start(words: Sequence[str], **rest: object) -> int:
        seen.append((words, rest["lines"]))
        return 0

    monkeypatch.setattr(sweep, "start_sweep", start)
    assert cli.main(["sweep", "--lines", "cells.txt", "preset=digits"]) == 0
    assert seen == [(["preset=digits"], [["algorithm=ssfl", "experiment.seed=1,2"], ["algorithm=fedavg"]])]
    Path("empty.txt").write_text("# nothing\n")
    assert cli.main(["sweep", "--lines", "empty.txt", "preset=digits"]) == 2
    assert cli.main(["sweep", "--lines", "absent.txt", "preset=digits"]) == 2


class _SubmititJob:
    def __init__(self, code: int | Exception) -> None:
        self._code, self._asked, self.cancelled = code, 0, False

    def done(self) -> bool:
        self._asked += 1
        return self._asked > 2

    def result(self) -> int:
        if isinstance(self._code, Exception):
            raise self._code
        return self._code

    def cancel(self) -> None:
        self.cancelled = True


class _AutoExecutor:
    """The documented interface of submitit.AutoExecutor; a submitted function runs immediately."""

    made: list[_AutoExecutor] = []  # noqa: RUF012

    def __init__(self, folder: str) -> None:
        self.folder, self.parameters, self.jobs = folder, dict[str, Any](), list[_SubmititJob]()
        self.lose_first = False
        _AutoExecutor.made.append(self)

    def update_parameters(self, **parameters: Any) -> None:
        if "no_such" in parameters:
            raise NameError("Unknown argument(s): no_such")
        self.parameters |= parameters

    def submit(self, function: Callable[..., int], *words: Any) -> _SubmititJob:
        lost = bool(os.environ.get("LOSE_FIRST")) and not self.jobs
        self.jobs.append(_SubmititJob(RuntimeError("node lost") if lost else function(*words)))
        return self.jobs[-1]


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> list[_AutoExecutor]:
    """A substitute for the package; the list contains the created executors."""
    monkeypatch.setattr(_AutoExecutor, "made", [])
    module = types.ModuleType("submitit")
    module.AutoExecutor = _AutoExecutor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "submitit", module)
    return _AutoExecutor.made


def test_submitit_gets_every_cell_and_its_options(command: list[str], submitit: list[_AutoExecutor]) -> None:
    place = sweep.Placement("submitit", options=("timeout_min=240", "slurm_partition=gpu"))
    assert sweep.start_sweep(WORDS, command, place, Path("out")) == 0
    (executor,) = submitit
    assert executor.parameters == {"name": "ssfl", "timeout_min": 240, "slurm_partition": "gpu"}
    assert Path(executor.folder) == Path("out/submitit")
    assert len(executor.jobs) == len(_when(Path("out"))) == 3


@pytest.mark.parametrize("variable", [("FAIL_FIRST", "1"), ("FAIL_FIRST", "130"), ("LOSE_FIRST", "yes")])
def test_what_a_cluster_loses_is_tried_once_more(
    command: list[str],
    submitit: list[_AutoExecutor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: tuple[str, str],
) -> None:
    monkeypatch.setenv(*variable)  # 130: the cluster ended the job, not Ctrl-C on this machine
    assert sweep.start_sweep(WORDS, command, sweep.Placement("submitit"), Path("out")) == 0
    tried = 6 if variable[0] == "FAIL_FIRST" else 4
    assert len(submitit[0].jobs) == tried
    assert capsys.readouterr().err.count("trying once more") == tried - 3


class _Ray(types.ModuleType):
    """The documented interface of Ray's tasks; a task runs immediately."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: dict[str, Any] = {}
        self.cancelled: list[object] = []

    def init(self, **words: Any) -> None:
        self.calls["init"] = words

    def remote(self, function: Callable[..., int]) -> Any:
        def options(**words: Any) -> Any:
            self.calls["options"] = words
            return types.SimpleNamespace(remote=lambda *arguments: [function(*arguments)])

        return types.SimpleNamespace(options=options)

    def wait(self, references: list[list[int]], timeout: float) -> tuple[list[list[int]], list[list[int]]]:
        assert timeout == 0
        return references, []

    def get(self, reference: list[int]) -> int:
        return reference[0]

    def cancel(self, reference: object) -> None:
        self.cancelled.append(reference)


def test_ray_gets_every_cell_and_its_options(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = _Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    place = sweep.Placement("ray", jobs=2, options=("address=auto", "num_cpus=4", "num_gpus=0.5"))
    assert sweep.start_sweep(WORDS, command, place, Path("out")) == 0
    assert ray.calls["init"]["address"] == "auto"
    assert ray.calls["options"] == {"max_retries": 0, "num_cpus": 4, "num_gpus": 0.5}
    assert len(_when(Path("out"))) == 3


def test_stopping_takes_back_what_is_queued(submitit: list[_AutoExecutor], tmp_path: Path) -> None:
    place = launcher("submitit", tmp_path, 2, ())
    place.start([sys.executable, "-c", ""], tmp_path / "log.txt")
    place.stop()
    assert submitit[0].jobs[0].cancelled


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--launcher", "submitit"], "pip install submitit"),
        (["--launcher", "ray"], "pip install ray"),
        (["--launcher-option", "timeout_min=4"], "takes no options"),
        (["--launcher", "ray", "--launcher-option", "cpus"], "give KEY=VALUE"),
    ],
)
def test_a_place_that_is_not_to_be_had_is_one_line(
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert cli.main(["sweep", *words, *WORDS]) == 2
    printed = capsys.readouterr().err
    assert reason in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_submitit_refuses(submitit: list[_AutoExecutor], tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="no_such"):
        launcher("submitit", tmp_path, 1, ("no_such=1",))


def test_local_leaves_no_process_behind(tmp_path: Path) -> None:
    place = Local(2)
    patient = "import time; print('up', flush=True); time.sleep(60)"
    stubborn = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {patient}"
    jobs = [
        place.start([sys.executable, "-c", code], tmp_path / f"{i}.txt")
        for i, code in enumerate([stubborn, patient])
    ]
    until = time.monotonic() + 20
    while time.monotonic() < until and not all(
        (tmp_path / f"{i}.txt").read_text().startswith("up") for i in (0, 1)
    ):
        time.sleep(0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssfl.sweep.launchers.local.AGAIN_SECONDS", 0.5)
        patch.setattr("ssfl.sweep.launchers.local.GRACE_SECONDS", 0.5)
        place.stop()
    assert all(job.done() for job in jobs)
    assert jobs[0].exit_code() == -9
    for job in jobs:
        with pytest.raises(ProcessLookupError):
            os.kill(job.pid, 0)


def test_a_cancelled_task_ends_its_cell_cleanly(tmp_path: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(60)"
    caller = (
        "import sys\nfrom ssfl.sweep.launchers.local import run_command\n"
        f"run_command([sys.executable, '-c', {code!r}], 'log.txt', '.')"
    )
    paths = os.pathsep.join(
        filter(None, [str(Path(sweep.__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    task = subprocess.Popen(
        [sys.executable, "-c", caller],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    log, until = tmp_path / "log.txt", time.monotonic() + 30
    while time.monotonic() < until and not (log.exists() and log.read_text().startswith("up")):
        time.sleep(0.05)
    task.send_signal(signal.SIGINT)  # only the task: Ray raises KeyboardInterrupt there, not in the cell
    task.wait(30)
    assert "KeyboardInterrupt" in log.read_text()  # the cell was asked to end, not killed


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"of an earlier attempt\n")
    tail = Tail(path)
    with path.open("ab") as log:
        log.write(b"one\ntw")
        log.flush()
        assert list(tail.lines()) == ["one"]
        log.write(b"o\n\xff\n")
        log.flush()
        assert list(tail.lines()) == ["two", "�"]
    assert list(tail.lines()) == []
    assert list(Tail(tmp_path / "later.txt").lines()) == []


def test_help_names_the_places() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ssfl", "sweep", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert all(word in done.stdout for word in ("--jobs", "--into", "submitit", "ray"))


class _Interrupted:
    """A launcher with two Ctrl-C: while it waits for a cell, and while it cancels the cell."""

    here = False

    def __init__(self) -> None:
        self.stops = 0

    def start(self, command: Sequence[str], log: Path) -> Any:
        return self

    def done(self) -> bool:
        raise KeyboardInterrupt

    def stop(self) -> None:
        self.stops += 1
        if self.stops == 1:
            raise KeyboardInterrupt


def test_a_second_ctrl_c_leaves_no_job_queued(tmp_path: Path) -> None:
    place = _Interrupted()
    cells = [SweepCell("one", "one", ("preset=digits",), 3)]
    with pytest.raises(KeyboardInterrupt):
        Runner(tmp_path, ["true"], place, 1).run(cells)  # type: ignore[arg-type]
    assert place.stops == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["submitit", "ray"])
def test_a_real_launcher_gives_the_local_figures(kind: str, tmp_path: Path) -> None:
    """Slurm if it exists (else submitit's local processes), and Ray on this machine."""
    pytest.importorskip(kind, reason=f"needs the extra {kind!r}")
    figures = []
    for place in ("local", kind):
        words = ["preset=digits", "training.comm_round=2", "algorithm=ssfl,fedavg"]
        sweeping = [sys.executable, "-m", "ssfl", "sweep", *words, "--launcher", place]
        subprocess.run([*sweeping, "--into", str(tmp_path / place)], check=True, timeout=600)
        with (tmp_path / place / "report" / "comparison.csv").open() as table:
            rows = sorted(csv.DictReader(table), key=lambda row: row["setting"])
        figures.append([(row["setting"], row["status"], row["global_accuracy"]) for row in rows])
    assert figures[0] == figures[1]
    assert [status for _, status, _ in figures[0]] == ["finished", "finished"]
