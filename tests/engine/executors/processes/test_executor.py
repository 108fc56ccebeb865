"""Worker processes: the bits of the sequential executor also if workers die; no leaked processes or memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ssfl.engine.client.errors import ClientError, DivergedError
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.processes.executor import MAX_DEATHS, ProcessExecutor, WorkerError
from ssfl.engine.executors.sequential import SequentialExecutor
from tests.support.executor_cases import (
    METHODS,
    SIZES,
    check_echoes,
    check_same_run,
    echo_jobs,
    rig_of,
    run_rig,
    runner_of,
    tasks_of_all,
)
from tests.support.faults import (
    VICTIM,
    KillOnce,
    alive,
    bad_data,
    echo,
    eventually,
    kill_always,
    rss_bytes,
)
from tests.support.paths import ROOT
from tests.support.rigs import tiny_net

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")


@dataclass
class Pool:
    """The workers of this file's tests, and the warnings about them."""

    executor: ProcessExecutor
    runner: ClientRunner
    marker: Path
    warnings: list[str] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return [w.process.pid for w in self.executor._workers]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    marker = tmp_path_factory.mktemp("pool") / "killed"
    tasks = tasks_of_all()
    tasks |= {"echo": echo(), "raise": echo(bad_data), "kill_once": echo(KillOnce(marker))}
    runner = runner_of(tasks)
    warnings: list[str] = []
    executor = ProcessExecutor(runner, 2, warnings.append)
    yield Pool(executor, runner, marker, warnings)
    executor.close()


@pytest.mark.parametrize("name", [n for n in METHODS if n != "wild"])
def test_the_sequential_executors_bits(name: str, pool: Pool) -> None:
    check_same_run(name, pool.runner, pool.executor)


def test_a_mask_that_all_clients_were_sent_is_one_tensor(pool: Pool) -> None:
    _, memories = run_rig(rig_of("ssfl", pool.executor))
    assert len(memories) == len(SIZES)
    assert len({m["mask"].data_ptr() for m in memories.values()}) == 1


def test_predictions_are_the_sequential_ones(pool: Pool) -> None:
    theta = pool.runner.layout.flatten(tiny_net("batch", seed=3))
    for ours, theirs in zip(
        pool.executor.predict(theta), SequentialExecutor(pool.runner).predict(theta), strict=True
    ):
        assert ours.equal(theirs)


def test_outcomes_come_in_the_jobs_order(pool: Pool) -> None:
    clients = [7, 2, 19, 0, 11, 4]
    check_echoes(list(pool.executor.run(echo_jobs("echo", clients))), clients)
    assert list(pool.executor.run([])) == []


def test_a_worker_killed_in_mid_round_is_named_and_replaced(pool: Pool) -> None:
    before, earlier = pool.pids, len(pool.warnings)
    pool.marker.unlink(missing_ok=True)
    check_echoes(list(pool.executor.run(echo_jobs("kill_once", range(6)))), range(6))
    (line,) = pool.warnings[earlier:]
    assert f"died during client {VICTIM} (kill_once)" in line
    assert "exit code -9" in line
    assert "replaced" in line
    assert len(set(before) & set(pool.pids)) == 1
    assert all(map(alive, pool.pids))


def test_a_worker_killed_between_rounds_is_replaced(pool: Pool) -> None:
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert eventually(lambda: not alive(before[0]), 10)
    check_echoes(list(pool.executor.run(echo_jobs("echo", range(4)))), range(4))
    assert before[0] not in pool.pids
    assert all(map(alive, pool.pids))


def test_an_exception_names_its_client_and_the_workers_go_on(pool: Pool) -> None:
    before = pool.pids
    message = "client 2, phase raise, round 1: ArithmeticError: client 2: bad data"
    with pytest.raises(ClientError, match=message) as caught:
        list(pool.executor.run(echo_jobs("raise", range(6))))
    assert "Traceback" in caught.value.trace  # the traceback of the worker
    check_echoes(list(pool.executor.run(echo_jobs("echo", range(6)))), range(6))
    assert pool.pids == before


def test_outcomes_that_nobody_takes_do_not_come_later(pool: Pool) -> None:
    for _ in range(5):
        next(iter(pool.executor.run(echo_jobs("echo", range(8), 50_000))))
        check_echoes(list(pool.executor.run(echo_jobs("echo", range(3)))), range(3))


def test_a_loss_that_is_not_finite_names_client_and_round(pool: Pool) -> None:
    with pytest.raises(DivergedError, match=r"client [\d, ]+, phase wild/train, round [12]|after round"):
        run_rig(rig_of("wild", pool.executor))


def test_workers_do_not_see_ctrl_c(pool: Pool) -> None:
    before = pool.pids
    for pid in before:
        os.kill(pid, signal.SIGINT)
    check_echoes(list(pool.executor.run(echo_jobs("echo", range(4)))), range(4))
    assert pool.pids == before


def test_shared_memory_has_no_name(pool: Pool) -> None:
    list(pool.executor.run(echo_jobs("echo", range(4))))
    for pid in pool.pids:
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
    blocks = [pool.executor._down, *(w.up for w in pool.executor._workers)]
    for block in blocks:
        assert os.readlink(f"/proc/self/fd/{block.fd}").startswith("/memfd:")


def test_many_rounds_grow_nothing(pool: Pool) -> None:
    """1 MB per payload, two clients: a leak of one tensor per round would be 150 MB in the 150 measured rounds."""
    jobs = echo_jobs("echo", range(2), 250_000)
    pids = [os.getpid(), *pool.pids]

    def rounds(count: int) -> tuple[list[int], int]:
        for _ in range(count):
            list(pool.executor.run(jobs))
        return [rss_bytes(p) for p in pids], len(os.listdir("/proc/self/fd"))

    before, files_before = rounds(50)
    after, files_after = rounds(150)
    assert max(b - a for a, b in zip(before, after, strict=True)) < 40_000_000
    assert files_after <= files_before


def test_a_job_that_kills_every_worker_stops_the_run_and_close_ends_all() -> None:
    files = len(os.listdir("/proc/self/fd"))
    warnings: list[str] = []
    executor = ProcessExecutor(runner_of({"kill_always": echo(kill_always)}), 1, warnings.append)
    pids = [w.process.pid for w in executor._workers]
    with pytest.raises(
        WorkerError, match=rf"{MAX_DEATHS} worker processes died during client 2 \(kill_always\)"
    ):
        list(executor.run(echo_jobs("kill_always", [VICTIM])))
    assert len(warnings) == MAX_DEATHS - 1
    executor.close()
    executor.close()
    assert not any(map(alive, pids))
    assert len(os.listdir("/proc/self/fd")) == files


WAITING = """
import sys
from ssfl.engine.executors.processes.executor import ProcessExecutor
from tests.support.faults import Wait, echo
from tests.support.executor_cases import echo_jobs, runner_of

executor = ProcessExecutor(runner_of({"wait": echo(Wait())}), 2)
print(*[w.process.pid for w in executor._workers], flush=True)
list(executor.run(echo_jobs("wait", range(4))))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "terminated"])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", WAITING], env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        workers = [int(w) for w in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        parent.send_signal(number)
        assert parent.wait(20) == -number
    assert eventually(lambda: not any(map(alive, workers)), 10)
