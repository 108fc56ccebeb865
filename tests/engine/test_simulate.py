"""simulate(): FedAvg compared with a manual gradient step, and with a loop that is built manually."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.client.errors import EngineError
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.simulate import simulate
from tests.support.rigs import FloatData, float_data, make_rig, tiny_net

DOUBLE = Arithmetic(dtype=torch.float64)


def whole_batch_step(module: nn.Module, data: FloatData, lr: float) -> Tensor:
    """One autograd step on all clients' examples; equals FedAvg with one batch per client."""
    module = copy.deepcopy(module).double()
    x = torch.cat([x for x, _ in data.train]).double()
    y = torch.cat([y for _, y in data.train])
    gradients = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(module.parameters(), gradients, strict=True):
            weight.sub_(lr * gradient)
    return Layout.of(module).flatten(module)


def test_a_round_with_one_batch_a_client_is_a_step_on_all_examples() -> None:
    """Clients are unequal, so this holds only if the mean is weighted by examples."""
    data, module = float_data(), tiny_net().double()
    wanted = whole_batch_step(module, data, 0.1)
    fit = FitSpec(epochs=1, batch_size=100, schedule=ExponentialDecay(0.1, 1.0))
    result = simulate(FedAvg(fit, data.num_clients), module, data, rounds=1, seed=3, arithmetic=DOUBLE)
    assert result.theta is not None
    torch.testing.assert_close(result.theta, wanted, rtol=1e-10, atol=1e-12)
    assert [e["event"] for e in result.events] == ["round"]
    assert result.events[0]["clients"] == data.num_clients


def test_the_accuracy_told_is_that_of_the_model_given() -> None:
    data = float_data()
    fit = FitSpec(epochs=2, batch_size=8, schedule=ExponentialDecay(0.1, 1.0))
    result = simulate(FedAvg(fit, 3), tiny_net().double(), data, rounds=4, seed=3, arithmetic=DOUBLE)
    assert result.theta is not None
    module = tiny_net().double()
    torch.nn.utils.vector_to_parameters(result.theta, module.parameters())
    x, y = (torch.cat(t) for t in zip(*data.test, strict=True))
    hits = (module(x.double()).argmax(1) == y).double().mean()
    assert [e["round"] for e in result.events] == [1, 2, 3, 4]
    assert result.events[-1]["global_accuracy"] == float(hits)


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    fit = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 1.0))
    ends = [
        simulate(FedAvg(fit, 2), tiny_net().double(), float_data(), 3, seed, arithmetic=DOUBLE).theta
        for seed in (7, 7, 8)
    ]
    rig = make_rig(FedAvg(fit, 2), float_data(), tiny_net(), seed=7)
    assert all(end is not None for end in ends)
    assert ends[0] is not None
    assert ends[0].equal(ends[1])  # type: ignore[arg-type]
    assert not ends[0].equal(ends[2])  # type: ignore[arg-type]
    assert ends[0].equal(rig.run(3))


class InOrder:
    """A custom batch order: the stored order of the examples."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        return torch.arange(examples)

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        raise NotImplementedError


def test_a_batch_order_of_ones_own_by_hand() -> None:
    """One client, two batches of 4 in the stored order."""
    data, module = float_data((8,)), tiny_net().double()
    plain = copy.deepcopy(module)
    x, y = data.train[0]
    for part in (slice(0, 4), slice(4, 8)):
        loss = cross_entropy(plain(x[part].double()), y[part])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(plain.parameters(), gradients, strict=True):
                weight.sub_(0.1 * gradient)
    fit = FitSpec(epochs=1, batch_size=4, schedule=ExponentialDecay(0.1, 1.0))
    result = simulate(FedAvg(fit, 1), module, data, 1, 3, order=InOrder(), arithmetic=DOUBLE)
    assert result.theta is not None
    torch.testing.assert_close(result.theta, Layout.of(plain).flatten(plain), rtol=1e-10, atol=1e-12)


def test_a_method_without_a_global_model_has_none() -> None:
    fit = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 1.0))
    result = simulate(LocalTraining(fit), tiny_net().double(), float_data(), 2, 3, arithmetic=DOUBLE)
    assert result.theta is None
    assert len(result.events) == 2
    assert result.events[-1]["global_accuracy"] is None


def test_one_example_a_minibatch_and_batch_normalisation_are_refused() -> None:
    fit = FitSpec(epochs=1, batch_size=1, schedule=ExponentialDecay(0.1, 1.0))
    data = float_data()
    width = data.train[0][0][0].numel()
    net = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(EngineError, match=r"batch size 1: a layer of this network \(BatchNorm\)"):
        simulate(FedAvg(fit, 3), net, data, rounds=1, seed=3)
