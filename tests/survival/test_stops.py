"""Runs that are told to stop, break, or meet another one: clean ends, one way on, nothing left running."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.engine.faults import alive, children, eventually
from tests.survival.runs import (
    check_same_end,
    ended,
    folders,
    killed,
    listens,
    only,
    resumed,
    rows,
    said_how_to_go_on,
    start,
    start_run,
    told,
    wait_until,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
LONG = ("training.comm_round=2000", "checkpoint.every_rounds=0", "training.frequency_of_the_test=100")


def checked_stop(stopped: tuple[int, str, str], root: Path) -> None:
    """130, the way on, and no traceback."""
    code, _, err = stopped
    assert code == 130, err
    assert said_how_to_go_on(err, only(root)), err


def test_ctrl_c_sigterm_and_a_second_process(tmp_path: Path) -> None:
    """One long run: refused to a second process while it is owned, stopped by Ctrl-C, resumed, terminated."""
    process = start_run(tmp_path, *LONG)
    wait_until(lambda: told(tmp_path, "round") >= 1, process)
    folder = only(tmp_path)
    code, out, err = resumed(tmp_path, folder)
    assert (code, out) == (2, "")
    assert err == f"ssfl: {folder}: another process is running this; wait for it or stop it\n"
    checked_stop(killed(process, signal.SIGINT), tmp_path)
    done = rows(folder)[-1]["round"]
    assert rows(folder)[-1]["event"] == "run_interrupted"
    assert done >= 1

    process = start(tmp_path, "resume", folder)
    wait_until(lambda: told(tmp_path, "round") > done, process)
    checked_stop(killed(process, signal.SIGTERM), tmp_path)
    rounds = [r["round"] for r in rows(folder) if r["event"] == "round"]
    assert rounds == list(range(1, len(rounds) + 1))
    assert len(rounds) > done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
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


def test_a_loss_that_is_not_finite_stops_resumably(tmp_path: Path) -> None:
    process = start_run(tmp_path, "optimizer.lr=1e6", "optimizer.clip_norm=0")
    code, _, err = ended(process)
    folder = only(tmp_path)
    assert code == 1
    assert said_how_to_go_on(err, folder)
    first = err.splitlines()[0]
    assert "client " in first
    assert "round 1" in first
    assert "Lower optimizer.lr or optimizer.clip_norm" in first
    assert rows(folder)[-1]["event"] == "run_interrupted"
    assert resumed(tmp_path, folder)[0] == 1  # from the same weights with the same draws it breaks again


def test_worker_processes_end_with_the_run_and_the_end_is_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    assert ended(start_run(one))[0] == 0  # in one process
    process = start_run(two, "engine.executor=processes", "engine.workers=2", "engine.block=1")
    wait_until(lambda: told(two, "round") >= 1, process)
    workers = children(process.pid)
    assert len(workers) == 2
    assert killed(process)[0] == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, workers)), 20)
    process = start(two, "resume", only(two))
    wait_until(lambda: told(two, "round") >= 2, process)
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
    wait_until(lambda: told(two, "round") >= 1, process)
    assert children(process.pid) == []
    assert killed(process)[0] == -signal.SIGKILL
    process = start(two, "resume", only(two))
    wait_until(lambda: told(two, "round") >= 2, process)
    checked_stop(killed(process, signal.SIGINT), two)
    assert resumed(two, only(two))[0] == 0
    check_same_end(only(two), only(one))
