"""Costs against the published figures, hand computation, and PyTorch's own FLOP counter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssfl.core.cost import (
    LayerCost,
    forward_flops,
    forward_zeros,
    layer_costs,
    training_flops,
)
from ssfl.models import build_model

CIFAR = (3, 32, 32)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return build_model("resnet18", 10, CIFAR)


@pytest.fixture(scope="module")
def resnet18_costs(resnet18: nn.Module) -> tuple[LayerCost, ...]:
    return layer_costs(resnet18, CIFAR)


def test_dense_resnet18_costs_what_the_authors_counter_says(resnet18_costs: tuple[LayerCost, ...]) -> None:
    forward = forward_flops(resnet18_costs)
    assert forward == 1_110_845_450
    assert training_flops(forward, examples=500, epochs=5) == pytest.approx(8.33e12, rel=1e-3)


def erk_densities(shapes: dict[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Erdős–Rényi-kernel densities over all tensors, as in DisPFL: full layers are fixed, the rest is rescaled."""
    full: set[str] = set()
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    while True:
        raw = {name: sum(shape) / size[name] for name, shape in shapes.items() if name not in full}
        budget = density * sum(size.values()) - sum(size[name] for name in full)
        scale = budget / sum(raw[name] * size[name] for name in raw)
        if max(raw.values()) * scale <= 1:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        full |= {name for name, value in raw.items() if value == max(raw.values())}


@pytest.mark.parametrize(
    ("density", "published"),
    [(0.5, 7.06e12), (0.3, 5.69e12), (0.2, 4.65e12), (0.1, 2.48e12), (0.05, 1.45e12)],
)
def test_dispfl_client_round_at_erk_density(
    resnet18: nn.Module, resnet18_costs: tuple[LayerCost, ...], density: float, published: float
) -> None:
    """Sparse training on 500 examples, 5 epochs, plus dense screening of one batch of 128."""
    erk = erk_densities({name: tuple(p.shape) for name, p in resnet18.named_parameters()}, density)
    kept = {cost.name: int(erk[cost.name] * cost.weights) for cost in resnet18_costs}
    sparse = training_flops(forward_flops(resnet18_costs, kept), examples=500, epochs=5)
    screening = training_flops(forward_flops(resnet18_costs), examples=128, epochs=1)
    assert sparse + screening == pytest.approx(published, abs=0.005e12)


class Zoo(nn.Module):
    """One layer of each kind that is counted, with every option that changes the count."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, dilation=2, padding=1, bias=False)
        self.transposed = nn.ConvTranspose2d(8, 6, 3, stride=2)
        self.line = nn.Conv1d(6, 5, 2)
        self.tokens = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transposed(self.grouped(self.strided(x)))
        return self.tokens(self.line(x.flatten(2)).transpose(1, 2))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Zoo(), (4, 9, 11)),
        (build_model("cnn", 10, (3, 28, 28)), (3, 28, 28)),
        (build_model("resnet8", 7, (1, 12, 12), norm="batch"), (1, 12, 12)),
        (build_model("mlp", 3, (13,)), (13,)),
    ],
    ids=["zoo", "cnn", "resnet8-batch", "mlp"],
)
def test_multiplications_equal_pytorchs_own_counter(module: nn.Module, shape: tuple[int, ...]) -> None:
    costs = layer_costs(module, shape)
    module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *shape))
    assert forward_flops(costs) - sum(cost.bias_flops for cost in costs) == counter.get_total_flops()


def test_hand_computed_costs() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * 2 * 6, 5))
    # Output of the convolution: 4 maps of 2×6; one bias addition per output value.
    expected = (LayerCost("0.weight", 12, 48, 108), LayerCost("3.weight", 1, 5, 240))
    costs = layer_costs(module, (3, 4, 8))
    assert costs == expected
    assert forward_flops(costs) == 2 * 108 * 12 + 48 + 2 * 240 + 5
    assert forward_flops(costs, {"0.weight": 10}) == 2 * 10 * 12 + 48 + 2 * 240 + 5
    assert forward_flops(costs, {"0.weight": 0, "3.weight": 0}) == 53


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.first.weight
        self.unused = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.first(self.first(x)))


def test_repeated_shared_and_unused_layers() -> None:
    assert layer_costs(Shared(), (6,)) == (
        LayerCost("first.weight", 3, 0, 36),
        LayerCost("unused.weight", 0, 0, 12),
    )


COSTS = (LayerCost("a", 5, 7, 40), LayerCost("b", 1, 3, 9))


@settings(max_examples=50, deadline=None)
@given(a=st.integers(0, 40), b=st.integers(0, 9))
def test_flops_are_linear_in_the_kept_weights(a: int, b: int) -> None:
    pruned = forward_flops(COSTS, {"a": a, "b": b})
    assert forward_flops(COSTS) - pruned == 10 * (40 - a) + 2 * (9 - b)


@pytest.mark.parametrize("kept", [{"c": 1}, {"a": 41}, {"b": -1}])
def test_impossible_kept_counts_are_refused(kept: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="allowed: ") as error:
        forward_flops(COSTS, kept)
    assert repr(next(iter(kept))) in str(error.value)


class Noisy(nn.Module):
    """Draws random numbers, counts its calls, and fails if requested."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("on purpose")
        return self.norm(self.linear(x + torch.rand_like(x)))


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_everything_as_it_was(fails: bool) -> None:
    module = Noisy()
    module.norm.eval()  # a frozen norm in a training network must stay frozen
    module.fails = fails
    state = {name: value.clone() for name, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            layer_costs(module, (3,))
    else:
        layer_costs(module, (3,))
    assert torch.equal(random_state, torch.get_rng_state())
    assert (module.training, module.linear.training, module.norm.training) == (True, True, False)
    assert not module.linear._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_zeros_follow_the_modules_dtype() -> None:
    output = forward_zeros(nn.Linear(3, 2).double(), (3,), examples=4)
    assert (output.dtype, tuple(output.shape), output.requires_grad) == (torch.float64, (4, 2), False)
    assert layer_costs(nn.Flatten(), (2, 3)) == ()
