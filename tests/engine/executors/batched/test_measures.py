"""Batches, tests and saliencies of a block compared with each client alone, for unequal clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ClientContext, Clock, Probe, Work
from ssfl.algorithms.dense import dense_training
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import dense_values
from ssfl.core.saliency import GRADIENT, GRASP, SALIENCIES, SNIP
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation
from ssfl.data.preprocess import Preprocess
from ssfl.data.side_by_side import steps_side_by_side
from ssfl.engine.client.data_source import BlockSource
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.batched.batches import probe_steps, train_steps
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.batched.measures import block_saliency, block_tallies
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.sequential import SequentialExecutor
from tests.support.rigs import float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, clip_norm=10.0)
GRADIENT_SALIENCIES = {n: s for n, s in {**SALIENCIES, "gradient": GRADIENT}.items() if s.of_gradient}
TRAIN, TEST = (21, 9, 1, 13), (40, 0, 3, 5)


def pictures(augmented: bool = True) -> Federation:
    """Clients of unequal sizes; the second has no test rows."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (sum(TRAIN) + sum(TEST), 3, 6, 6), dtype=torch.uint8, generator=draws)
    y = torch.randint(0, 3, (len(x),), generator=draws)
    n = sum(TRAIN)
    arrays = Arrays("own", 3, tuple("abc"), x[:n], y[:n], x[n:], y[n:])
    preprocess = Preprocess((0.4,), (0.2,), 2, True) if augmented else Preprocess((0.4,), (0.2,))
    parts = torch.split(torch.randperm(n, generator=draws), list(TRAIN))
    return Federation(arrays, preprocess, parts, torch.split(torch.arange(sum(TEST)), list(TEST)))


def runner_on(source: object, norm: str = "group") -> ClientRunner:
    net = tiny_net(norm, channels=3 if isinstance(source, Federation) else 1)
    tasks = FedAvg(FIT, 2).tasks
    return ClientRunner(net, source, tasks, 7, arithmetic=Arithmetic(dtype=torch.float64))  # type: ignore[arg-type]


def contexts_of(runner: ClientRunner, clients: Sequence[int]) -> list[ClientContext]:
    """Contexts sorted by number of examples, as in a block."""
    found = [ClientContext(c, Clock(2, 5), 7, runner.layout, runner.federation.examples(c)) for c in clients]
    return sorted(found, key=lambda c: -c.examples)


def models(runner: ClientRunner, clients: int) -> Work:
    draws = torch.Generator().manual_seed(2)
    theta = runner.layout.flatten(runner.module).repeat(clients, 1)
    size = runner.layout.trained_size
    theta[:, :size] += 0.2 * torch.randn(clients, size, dtype=torch.float64, generator=draws)
    return {"theta": theta}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_steps_hold_every_example_of_every_client_once(sizes: list[int], batch_size: int) -> None:
    sizes.sort(reverse=True)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    held: list[list[int]] = [[] for _ in sizes]
    for places, missing in steps_side_by_side(sizes, batch_size):
        assert len(places) <= batch_size
        for k in range(places.shape[1]):
            held[k] += places[~missing[:, k], k].tolist()
            assert set(places[missing[:, k], k].tolist()) <= {ends[k] - 1}
    assert held == [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def test_clients_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with \[3, 4\] examples: order them, the largest first"):
        list(steps_side_by_side([3, 4], 2))


SOURCES = [pictures(), pictures(augmented=False), float_data((13, 8, 1, 21, 5))]


@pytest.mark.parametrize("source", SOURCES, ids=["augmented", "plain", "client by client"])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_blocks_minibatches_are_the_clients_own(source: object, coupled: bool) -> None:
    runner = runner_on(source)
    assert isinstance(source, BlockSource) == isinstance(source, Federation)
    contexts = contexts_of(runner, range(4))
    alone = [list(runner.train_batches(c, 1, 8)) for c in contexts]
    seen = [0] * 4
    for rows, (x, y), counts in train_steps(runner, contexts, 1, 8, coupled):
        for k, count in zip(range(rows.start, rows.stop), counts.tolist(), strict=True):
            own_x, own_y = alone[k][seen[k]]
            column = k - rows.start
            assert x[: len(own_y), column].equal(own_x)
            assert y[: len(own_y), column].equal(own_y)
            assert count == len(own_y)
            assert bool((y[count:, column] == -100).all())
            assert len(y) == count or not coupled
            seen[k] += 1
    assert seen == [len(batches) for batches in alone]


@pytest.mark.parametrize("source", SOURCES, ids=["augmented", "plain", "client by client"])
def test_a_blocks_scoring_minibatches_are_the_clients_own(source: object) -> None:
    runner, probe = runner_on(source), Probe(SNIP, batches=2, batch_size=6)
    contexts = contexts_of(runner, range(4))
    alone = [list(runner.probe_batches(probe, c)) for c in contexts]
    for index, (_, (x, y), counts) in enumerate(probe_steps(runner, contexts, probe, coupled=False)):
        for k, count in enumerate(counts.tolist()):
            own_x, own_y = alone[k][index]
            assert x[:count, k].equal(own_x)
            assert y[:count, k].equal(own_y)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("source", [pictures(), float_data((13, 8, 1, 21, 5))], ids=["block", "one by one"])
@pytest.mark.parametrize("clients", [[1, 0, 3, 2], [1]], ids=str)
def test_tallies_are_those_of_each_client_alone(source: object, norm: str, clients: list[int]) -> None:
    """With [1], no client of the block has a test row."""
    runner = runner_on(source, norm)
    task, work = dense_training(FIT), models(runner, len(clients))
    net = BlockNet(runner.flat(task).module, runner.layout)
    for k, found in enumerate(block_tallies(runner, net, task, work, clients, "trained")):
        context = contexts_of(runner, [clients[k]])[0]
        alone = runner.tallies(task, "trained", {"theta": work["theta"][k]}, context)
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            assert found[name].correct.equal(expected.correct)
            assert found[name].total.equal(expected.total)
            assert found[name].loss_sum == pytest.approx(expected.loss_sum, abs=1e-10)


@pytest.mark.parametrize("name", GRADIENT_SALIENCIES)
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_saliencies_are_those_of_each_client_alone(name: str, norm: str, training: bool) -> None:
    runner = runner_on(pictures(), norm)
    saliency = replace(GRADIENT_SALIENCIES[name], training_mode=training)
    probe = Probe(saliency, batches=2, batch_size=6)
    task, contexts = dense_training(FIT), contexts_of(runner, [0, 1, 3])
    work = models(runner, 3)
    net = BlockNet(runner.flat(task).module, runner.layout)
    found = block_saliency(runner, net, probe, work["theta"], contexts)
    for k, context in enumerate(contexts):
        expected = runner.probe(task, probe, {"theta": work["theta"][k]}, context)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-11)


def test_saliencies_do_not_depend_on_the_precision_of_training() -> None:
    """With autocast, the mask would depend on the executor."""
    found = []
    for precision in ("fp32", "bf16"):
        net = tiny_net("group", channels=3)
        runner = ClientRunner(net, pictures(), FedAvg(FIT, 2).tasks, 7, arithmetic=Arithmetic(precision))
        task, contexts = dense_training(FIT), contexts_of(runner, [0, 1])
        theta = runner.layout.flatten(net).repeat(2, 1)
        block = BlockNet(runner.flat(task).module, runner.layout, runner.arithmetic.autocast)
        found.append(block_saliency(runner, block, Probe(SNIP, 2, 6), theta, contexts))
        for k, context in enumerate(contexts):
            alone = runner.probe(task, Probe(SNIP, 2, 6), {"theta": theta[k]}, context)
            torch.testing.assert_close(found[-1][k], alone, rtol=0, atol=1e-6)
    assert found[0].equal(found[1])


METHODS: Mapping[str, Algorithm[Any]] = {
    "fedavg": FedAvg(FIT, 4),
    "ssfl": SSFL(FIT, 4, Discovery(Probe(SNIP, 2, 6), 0.3)),
    "ssfl, a saliency of one client": SSFL(FIT, 4, Discovery(Probe(GRASP, 1, 6), 0.3)),
    "dispfl": DisPFL(FIT, 0.3, neighbour_count=2),
}


class Counted:
    """A federation in the form that `make_rig` needs."""

    num_classes = 3

    def __init__(self, data: Federation) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_runs_on_a_federation_end_as_one_client_after_the_other(name: str, norm: str) -> None:
    method, data, ends = METHODS[name], pictures(), []
    for batched in (False, True):
        runner = make_runner(data, tiny_net(norm, channels=3), method.tasks)  # type: ignore[arg-type]
        executor = BatchedExecutor(runner, 3) if batched else SequentialExecutor(runner)
        rig = make_rig(method, Counted(data), tiny_net(norm, channels=3), executor=executor)  # type: ignore[arg-type]
        rig.loop.run(rig.loop.start(rig.theta, 2))
        ends.append([r for _, replies in rig.recorder.passed for r in replies])
    for one, other in zip(*ends, strict=True):
        assert one.client == other.client
        losses = [
            (r.report.train_loss.last_epoch, r.report.train_loss.all_epochs)
            for r in (one, other)
            if r.report.train_loss
        ]
        assert len(losses) in (0, 2)
        assert losses[:1] == [pytest.approx(loss, abs=1e-10) for loss in losses[1:]]
        for part, same in zip(one.payload.parts.values(), other.payload.parts.values(), strict=True):
            if hasattr(part, "values"):
                torch.testing.assert_close(part.values, same.values, rtol=0, atol=1e-10)  # type: ignore[union-attr]
        for when, tally in one.report.tallies.items():
            assert tally.correct.equal(other.report.tallies[when].correct)


def test_replies_come_in_the_jobs_order_and_theirs_are_theirs() -> None:
    """The block trains in another order than the plan; each reply must belong to its client."""
    data, method = float_data((3, 20, 7, 11)), FedAvg(replace(FIT, epochs=1), 4)
    replies: list[list[Tensor]] = []
    for block in (1, 4):
        runner = make_runner(data, tiny_net(), method.tasks)
        executor = BatchedExecutor(runner, block)
        rig = make_rig(method, data, tiny_net(), executor=executor)
        rig.run(1)
        got = rig.recorder.passed[0][1]
        assert [r.client for r in got] == [0, 1, 2, 3]
        assert [r.examples for r in got] == [3, 20, 7, 11]
        replies.append([dense_values(r.payload.parts["w"]) for r in got])
    torch.testing.assert_close(replies[0], replies[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", [3, 4, 5])
def test_images_with_channels_last_of_a_source_that_reads_client_by_client(block: int) -> None:
    """A network with an operation that only torch.func computes in blocks."""
    data, method, ends = float_data((13, 8, 1, 21, 5)), FedAvg(FIT, 5), []
    for make in (SequentialExecutor, lambda runner: BatchedExecutor(runner, block)):
        net = tiny_net()
        assert isinstance(net, nn.Sequential)
        net[2] = nn.Tanh()
        arithmetic = Arithmetic(channels_last=True, dtype=torch.float64)
        runner = ClientRunner(net, data, method.tasks, 7, arithmetic=arithmetic)
        ends.append(make_rig(method, data, net, executor=make(runner)).run(2))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-10)
