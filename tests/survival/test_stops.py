"""Runs that are stopped, fail, or find a second process: clean ends, one resume command, no process remains."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssfl.code_version import code_version
from tests.support.faults import alive, children, eventually
from tests.support.run_processes import (
    TIMEOUT,
    WORDS,
    check_same_end,
    count_events,
    ended,
    environment,
    folders,
    hangup_as_usual,
    killed,
    listens,
    only,
    resumed,
    rows,
    said_how_to_go_on,
    start,
    start_run,
    wait_until,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
LONG = ("training.comm_round=2000", "checkpoint.every_rounds=0", "training.frequency_of_the_test=100")


def checked_stop(stopped: tuple[int, str, str], root: Path) -> None:
    """Check exit code 130, the resume command, and no traceback."""
    code, _, err = stopped
    assert code == 130, err
    assert said_how_to_go_on(err, only(root)), err


def test_ctrl_c_sigterm_and_a_second_process(tmp_path: Path) -> None:
    """One long run: refused to a second process while it is owned, stopped by Ctrl-C, resumed, terminated."""
    process = start_run(tmp_path, *LONG)
    wait_until(lambda: count_events(tmp_path, "round") >= 1, process)
    folder = only(tmp_path)
    code, out, err = resumed(tmp_path, folder)
    assert (code, out) == (2, "")
    assert err == f"ssfl: {folder}: another process is running this; wait for it or stop it\n"
    checked_stop(killed(process, signal.SIGINT), tmp_path)
    done = rows(folder)[-1]["round"]
    assert rows(folder)[-1]["event"] == "run_interrupted"
    assert done >= 1

    process = start(tmp_path, "resume", folder)
    wait_until(lambda: count_events(tmp_path, "round") > done, process)
    checked_stop(killed(process, signal.SIGTERM), tmp_path)
    rounds = [r["round"] for r in rows(folder) if r["event"] == "round"]
    assert rounds == list(range(1, len(rounds) + 1))
    assert len(rounds) > done
    (again,) = [r for r in rows(folder) if r["event"] == "resumed"]
    assert again["code"] == vars(code_version())


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "terminated", "hung up"]
)
def test_stopped_within_the_first_second(number: signal.Signals, tmp_path: Path) -> None:
    process = start_run(tmp_path, *LONG)
    wait_until(lambda: listens(process), process)
    time.sleep(random.Random(int(number)).uniform(0, 0.8))
    code, out, err = killed(process, number)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert "stopped" in err
    for folder in folders(tmp_path):
        assert said_how_to_go_on(err, folder)
    assert not list(tmp_path.glob("outputs/digits/.new-*"))


def test_an_interrupt_inside_exec_of_a_string_ends_with_130_too(tmp_path: Path) -> None:
    """After a KeyboardInterrupt in exec, CPython ends by SIGINT with any exit code, unless a string was run later."""
    program = (
        "from ssfl import cli\n"
        "cli.VERBS['keys'] = lambda _: exec('raise KeyboardInterrupt')\n"
        "raise SystemExit(cli.main(['keys']))\n"
    )
    (tmp_path / "interrupted.py").write_text(program)
    assert ended(start(tmp_path, program=("-m", "interrupted"))) == (130, "", "ssfl: stopped\n")


def test_a_loss_that_is_not_finite_ends_with_the_command_that_helps(tmp_path: Path) -> None:
    """A resume would fail again and cannot change the learning rate, so the command starts a new run."""
    process = start_run(tmp_path, "optimizer.lr=1e6", "optimizer.clip_norm=0")
    code, _, err = ended(process)
    folder = only(tmp_path)
    assert code == 1
    assert "Traceback" not in err
    first, why, command = err.splitlines()
    assert "client 0, phase train, round 1: the training loss is nan" in first
    assert "a resumed run would fail again" in why
    assert "ssfl resume" not in err
    words = shlex.split(command.partition("start again with: ")[2])
    assert words[:2] == ["ssfl", "run"]
    assert words[2:] == [*WORDS, "optimizer.clip_norm=0", "optimizer.lr=100000"]
    assert rows(folder)[-1]["event"] == "run_interrupted"
    assert resumed(tmp_path, folder)[0] == 1  # with the same weights and draws it fails again


def test_worker_processes_end_with_the_run_and_the_end_is_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    assert ended(start_run(one))[0] == 0  # in one process
    process = start_run(two, "engine.executor=processes", "engine.workers=2", "engine.block=1")
    wait_until(lambda: count_events(two, "round") >= 1, process)
    workers = children(process.pid)
    assert len(workers) == 2
    assert killed(process)[0] == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, workers)), 20)
    process = start(two, "resume", only(two))
    wait_until(lambda: count_events(two, "round") >= 2, process)
    workers = children(process.pid)
    assert len(workers) == 2
    checked_stop(killed(process, signal.SIGINT), two)
    assert not any(map(alive, workers))
    assert resumed(two, only(two))[0] == 0
    check_same_end(only(two), only(one), losses=False)


def test_threads_stop_at_once_and_the_end_is_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    assert ended(start_run(one, "engine.executor=sequential", "engine.block=1"))[0] == 0
    process = start_run(two, "engine.executor=threads", "engine.workers=2", "engine.block=1")
    wait_until(lambda: count_events(two, "round") >= 1, process)
    assert children(process.pid) == []
    assert killed(process)[0] == -signal.SIGKILL
    process = start(two, "resume", only(two))
    wait_until(lambda: count_events(two, "round") >= 2, process)
    checked_stop(killed(process, signal.SIGINT), two)
    assert resumed(two, only(two))[0] == 0
    check_same_end(only(two), only(one))


def test_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom ssfl.cli import main\nmain()"
    process = start(tmp_path, "run", *WORDS, "training.comm_round=1", program=("-c", program))
    wait_until(lambda: count_events(tmp_path, "run_started") >= 1, process)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0
    assert count_events(tmp_path, "run_finished") == 1


TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from ssfl.cli import main
raise SystemExit(main())
"""


def test_the_terminal_goes_away(tmp_path: Path) -> None:
    """Output to the terminal fails, but the checkpoint is written, and the run can be resumed."""
    ours, theirs = os.openpty()
    words = ["run", *WORDS, *LONG, "tracking.console=rich"]
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *words],
        cwd=tmp_path,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=hangup_as_usual,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    end = time.monotonic() + TIMEOUT
    while count_events(tmp_path, "round") < 1 and time.monotonic() < end:
        with contextlib.suppress(OSError):
            os.read(ours, 65536)
        time.sleep(0.01)
    os.close(ours)  # the kernel sends SIGHUP to the session
    assert process.wait(TIMEOUT) == 130
    assert rows(only(tmp_path))[-1]["event"] == "run_interrupted"
    assert list((only(tmp_path) / "checkpoints").glob("*.json"))


def test_cells_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "sweep", "--into", "s", *WORDS, *LONG, "experiment.seed=1,2")
    runs = tmp_path / "s" / "runs"

    def computed() -> bool:
        return any(b'"event": "round"' in path.read_bytes() for path in runs.glob("*/2*/metrics.jsonl"))

    wait_until(computed, process)
    cells = children(process.pid)
    assert len(cells) == 1
    assert killed(process)[0] == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, cells)), 60)
    (folder,) = runs.glob("*/2*")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "run_interrupted"
    assert list((folder / "checkpoints").glob("*.json"))  # a clean stop: it saved its progress
