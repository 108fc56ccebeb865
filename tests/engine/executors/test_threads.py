"""Threads: the bits of the sequential executor, and a stop at the next minibatch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.client.errors import ClientError, DivergedError
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.threads import AHEAD, ThreadExecutor, UnthreadableError
from tests.support.executor_cases import (
    METHODS,
    check_echoes,
    check_same_run,
    echo_jobs,
    rig_of,
    run_rig,
    runner_of,
    tasks_of_all,
)
from tests.support.faults import bad_data, echo, eventually
from tests.support.networks import NETWORKS
from tests.support.rigs import float_data, make_rig, make_runner, tiny_net

THREADS = 3


class Noisy(nn.Module):
    """Draws random numbers without a known random layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.flatten(1))
        return scores + torch.randn_like(scores) if self.training else scores


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadExecutor]:
    runner = runner_of({**tasks_of_all(), "echo": echo(), "raise": echo(bad_data)})
    executor = ThreadExecutor(runner, THREADS)
    yield executor
    executor.close()


@pytest.mark.parametrize("name", [n for n in METHODS if n != "wild"])
def test_the_sequential_executors_bits(name: str, executor: ThreadExecutor) -> None:
    check_same_run(name, executor.runner, executor)


def test_predictions_are_the_sequential_ones(executor: ThreadExecutor) -> None:
    theta = executor.layout.flatten(tiny_net("batch", seed=3))
    reference = SequentialExecutor(executor.runner).predict(theta)
    for ours, theirs in zip(executor.predict(theta), reference, strict=True):
        assert ours.equal(theirs)


def test_outcomes_come_in_the_jobs_order(executor: ThreadExecutor) -> None:
    clients = [7, 2, 19, 0, 11, 4]
    check_echoes(list(executor.run(echo_jobs("echo", clients))), clients)
    assert list(executor.run([])) == []


def test_an_exception_names_its_client_and_the_threads_go_on(executor: ThreadExecutor) -> None:
    with pytest.raises(
        ClientError, match="client 2, phase raise, round 1: ArithmeticError: client 2: bad data"
    ):
        list(executor.run(echo_jobs("raise", range(6))))
    check_echoes(list(executor.run(echo_jobs("echo", range(6)))), range(6))


def test_a_loss_that_is_not_finite_names_client_and_round(executor: ThreadExecutor) -> None:
    with pytest.raises(DivergedError, match=r"client [\d, ]+, phase wild/train, round [12]|after round"):
        run_rig(rig_of("wild", executor))


def test_outcomes_that_nobody_takes_do_not_come_later(executor: ThreadExecutor) -> None:
    for _ in range(5):
        next(iter(executor.run(echo_jobs("echo", range(8), 50_000))))
        check_echoes(list(executor.run(echo_jobs("echo", range(3)))), range(3))


def test_few_jobs_are_begun_before_their_outcomes_are_wanted() -> None:
    """The number of started jobs is limited, so that 10,000 clients' scores do not wait in memory for a slow one."""
    begun: list[int] = []
    counted = echo(lambda context: begun.append(context.client))
    executor = ThreadExecutor(runner_of({"counted": counted}), 2)
    outcomes = executor.run(echo_jobs("counted", [k % 20 for k in range(200)]))
    next(outcomes)
    executor.close()
    assert 1 <= len(begun) <= 2 * AHEAD + 1


def test_many_rounds_start_no_more_threads(executor: ThreadExecutor) -> None:
    list(executor.run(echo_jobs("echo", range(12))))
    before = threading.active_count()
    for _ in range(20):
        list(executor.run(echo_jobs("echo", range(12))))
    assert threading.active_count() == before


def test_the_generator_is_left_where_it_was(executor: ThreadExecutor) -> None:
    before = torch.default_generator.get_state()
    run_rig(rig_of("fedavg", executor))
    assert torch.default_generator.get_state().equal(before)


@pytest.mark.parametrize(
    "net",
    [Noisy(), nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))],
    ids=["own", "dropout"],
)
def test_a_network_that_draws_is_refused(net: nn.Module) -> None:
    with pytest.raises(UnthreadableError, match=r"draws at random in training.*sequential or processes"):
        ThreadExecutor(make_runner(float_data(), net, {}), 2)


def test_close_breaks_off_endless_work_at_its_next_minibatch() -> None:
    endless = FedAvg(FitSpec(10**9, 8, ExponentialDecay(0.1, 1.0)), 2)
    rig = make_rig(endless, float_data(), tiny_net(), dtype=torch.float32)
    progress = rig.loop.start(rig.theta, 1)
    plan = rig.plan(progress.state, progress.clock)
    jobs = [ClientJob(plan.phase, i.client, i.inbox, plan.clock) for i in plan.instructions]
    executor = ThreadExecutor(make_runner(float_data(), tiny_net(), endless.tasks), 2)
    raised: list[Exception] = []

    def take() -> None:
        try:
            next(iter(executor.run(jobs)))
        except Exception as error:
            raised.append(error)

    taker = threading.Thread(target=take)
    taker.start()
    assert eventually(lambda: executor._free.qsize() == 0, 20)  # both work
    executor.close()
    executor.close()
    taker.join(20)
    assert not taker.is_alive()
    assert len(raised) == 1


@pytest.mark.parametrize("make_net", [tiny_net, NETWORKS["SharedLayer"]], ids=["tiny_net", "SharedLayer"])
def test_bf16_has_the_sequential_executors_bits(make_net: Callable[[], nn.Module]) -> None:
    """Autocast's cache of cast weights, one for all threads, would add a shared layer's gradients in either type."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = make_net()
    method, ends = FedAvg(FitSpec(2, 8, ExponentialDecay(0.1, 1.0)), 5), []
    arithmetic = Arithmetic("bf16")
    for make in (SequentialExecutor, lambda runner: ThreadExecutor(runner, THREADS)):
        runner = ClientRunner(copy.deepcopy(net), float_data(), method.tasks, 7, arithmetic=arithmetic)
        executor = make(runner)
        rig = make_rig(method, float_data(), copy.deepcopy(net), dtype=torch.float32, executor=executor)
        ends.append(rig.run(3))
        executor.close()
    assert ends[0].equal(ends[1])
