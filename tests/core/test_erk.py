"""ERK shares against the authors' numbers, published shares of ResNet18, and properties of the equation."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssfl.core.cost import LayerCost, forward_flops, layer_costs, training_flops
from ssfl.core.erk import erk_densities, erk_mask, trained_shapes
from ssfl.core.layout import Layout
from ssfl.models import build_model

ORACLES: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parent.parent / "oracles" / "dispfl.json").read_text()
)["erk"]["small_net"]
SMALL_NET = {
    "conv1.weight": (8, 3, 3, 3),
    "norm1.weight": (8,),
    "norm1.bias": (8,),
    "conv2.weight": (16, 8, 3, 3),
    "norm2.weight": (16,),
    "norm2.bias": (16,),
    "fc.weight": (10, 16),
    "fc.bias": (10,),
}
SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)


@cache
def resnet18() -> tuple[Layout, tuple[LayerCost, ...]]:
    module = build_model("resnet18", 10, (3, 32, 32))
    return Layout.of(module), layer_costs(module, (3, 32, 32))


def test_authors_shares() -> None:
    expected = ORACLES["0.5"]["density"]
    found = erk_densities(SMALL_NET, 0.5)
    assert found == pytest.approx(expected, rel=1e-12)
    counts = {name: int(share * math.prod(SMALL_NET[name])) for name, share in found.items()}
    assert counts == ORACLES["0.5"]["mask_ones"]


def test_one_dimensional_tensors_are_not_always_dense() -> None:
    found = erk_densities(SMALL_NET, 0.05)
    assert found["norm1.weight"] == pytest.approx(0.605, abs=5e-4)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.5, {"layer3.0.conv1": (1, 1), "layer3.1.": (0.72, 0.72), "layer4.0.conv1": (0.54, 0.54)}),
        (0.5, {"conv1": (1, 1), "layer2.": (1, 1), "layer4.1.": (0.36, 0.36), "linear": (1, 1)}),
        (0.2, {"layer1.": (1, 1), "layer2.1.": (0.50, 0.50), "layer2.0.conv1": (0.75, 0.75)}),
        (0.2, {"layer3.0.conv1": (0.37, 0.37), "layer3.1.": (0.25, 0.25), "layer4.1.": (0.12, 0.12)}),
        (0.05, {"conv1": (1, 1), "layer2.0.shortcut": (1, 1), "linear": (1, 1), "layer1.": (0.23, 0.23)}),
        (0.05, {"layer2.1.": (0.11, 0.11), "layer3.1.": (0.055, 0.055), "layer4.1.": (0.027, 0.027)}),
    ],
)
def test_shares_of_resnet18(density: float, expected: dict[str, tuple[float, float]]) -> None:
    layout, _ = resnet18()
    shares = erk_densities(trained_shapes(layout), density)
    for prefix, (low, high) in expected.items():
        convolutions = [
            s for n, s in shares.items() if n.startswith(prefix) and ".norm" not in n and "bias" not in n
        ]
        assert convolutions
        for share in convolutions:
            assert low - 0.006 <= share <= high + 0.006, prefix


@pytest.mark.parametrize(
    ("density", "flops"), [(0.5, 7.06e12), (0.3, 5.69e12), (0.2, 4.65e12), (0.1, 2.48e12), (0.05, 1.45e12)]
)
def test_cost_of_a_dispfl_round_of_resnet18(density: float, flops: float) -> None:
    layout, costs = resnet18()
    shapes = trained_shapes(layout)
    kept = {
        name: int(share * math.prod(shapes[name])) for name, share in erk_densities(shapes, density).items()
    }
    masked = forward_flops(costs, {c.name: kept[c.name] for c in costs})
    total = training_flops(masked, 500, 5) + training_flops(forward_flops(costs), 128, 1)
    assert total == pytest.approx(flops, rel=2e-3)


@given(st.lists(SHAPES, min_size=1, max_size=8), st.floats(0.01, 1.0), st.floats(0.0, 2.0))
def test_total_is_the_density_and_order_follows_the_factor(
    shapes: list[tuple[int, ...]], density: float, power: float
) -> None:
    named = {f"t{i}": shape for i, shape in enumerate(shapes)}
    found = erk_densities(named, density, power)
    sizes = {name: math.prod(shape) for name, shape in named.items()}
    assert all(0 < share <= 1 + 1e-12 for share in found.values())
    assert sum(found[n] * sizes[n] for n in named) == pytest.approx(density * sum(sizes.values()), rel=1e-9)
    factors = {n: (sum(s) / math.prod(s)) ** power for n, s in named.items()}
    ratios = [found[n] / factors[n] for n in named if found[n] < 1 - 1e-9]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


def test_power_zero_is_uniform() -> None:
    assert list(erk_densities(SMALL_NET, 0.3, 0.0).values()) == pytest.approx([0.3] * len(SMALL_NET))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_refusal(density: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        erk_densities(SMALL_NET, density)


def test_mask_has_the_counts_and_is_uniform() -> None:
    layout = Layout(tuple(SMALL_NET), tuple(SMALL_NET.values()), (False,) * 8, (True,) * 8)
    draws = [erk_mask(layout, 0.5, torch.Generator().manual_seed(seed)) for seed in range(200)]
    for mask in draws[:3]:
        counts = {n: int(view.count_nonzero()) for n, view in layout.views(mask).items()}
        assert counts == ORACLES["0.5"]["mask_ones"]
    # Each coordinate of conv2 is kept with probability 367/1152; four deviations of 200 draws.
    share = torch.stack([layout.views(m)["conv2.weight"].flatten() for m in draws]).double().mean(0)
    wanted = 367 / 1152
    assert float((share - wanted).abs().max()) < 5 * math.sqrt(wanted * (1 - wanted) / 200)


def test_statistics_are_kept() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    layout = Layout.of(module)
    mask = erk_mask(layout, 0.1, torch.Generator().manual_seed(0))
    assert mask.shape == (layout.size,)
    assert bool(mask[layout.trained_size :].all())
