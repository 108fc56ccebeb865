"""The power re-parameterisation: its formula, its derivative at zero, its initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm
from torch import nn

from ssfl.core.layout import Layout
from ssfl.core.power import TRUNCATION, PowerLayers
from ssfl.models import build_model


@given(st.floats(1.0, 3.0), st.floats(-4.0, 4.0))
def test_formula_and_derivative(beta: float, value: float) -> None:
    v = torch.tensor([value, value], dtype=torch.float64, requires_grad=True)
    out = PowerLayers(beta).effective(v, torch.tensor([True, False]))
    assert out[0].item() == pytest.approx(math.copysign(abs(value) ** beta, value), rel=1e-12)
    assert out[1].item() == value
    (gradient,) = torch.autograd.grad(out.sum(), v)
    at_zero = 1.0 if beta == 1.0 else 0.0
    expected = beta * abs(value) ** (beta - 1) if value else at_zero
    assert gradient.tolist() == pytest.approx([expected, 1.0], rel=1e-9)


def test_shortcuts_of_resnets_stay_plain_and_nothing_else() -> None:
    layout = Layout.of(build_model("resnet18", 10, (3, 32, 32)))
    layers = PowerLayers()
    plain = [n for n, p in zip(layout.names, layout.prunable, strict=True) if p and not layers.is_power(n)]
    assert plain == [f"layer{i}.0.shortcut.0.weight" for i in (2, 3, 4)]
    power = layers.coordinates(layout)
    assert power.shape == (layout.trained_size,)
    # 11,164,352 prunable weights minus the three 1x1 shortcuts.
    assert int(power.count_nonzero()) == 11_164_352 - (64 * 128 + 128 * 256 + 256 * 512)


def test_initial_weights() -> None:
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Sequential(nn.Linear(400, 200)))
    net.add_module("shortcut", nn.Conv2d(4, 4, 1))
    layout, layers = Layout.of(net), PowerLayers(1.25)
    before = layout.flatten(net)
    after = layers.initialised(before, layout, torch.Generator().manual_seed(1))
    old, new = layout.views(before), layout.views(after)
    for name, fan_in in (("0.weight", 144), ("2.0.weight", 400)):
        seen = layers.effective(new[name], torch.ones(new[name].shape, dtype=torch.bool)).double()
        deviation = math.sqrt(1 / fan_in)
        assert float(seen.std()) == pytest.approx(deviation, rel=0.02)
        assert float(seen.mean()) == pytest.approx(0.0, abs=4 * deviation / math.sqrt(seen.numel()))
        assert float(seen.abs().max()) <= 2 * deviation / 0.8796 * (1 + 1e-4)
        assert not bool((seen == 0).any())
    assert not new["0.bias"].any()
    assert not new["2.0.bias"].any()
    for name in ("1.weight", "1.bias", "1.running_var"):
        assert new[name].equal(old[name])
    again = layers.initialised(before, layout, torch.Generator().manual_seed(1))
    assert again.equal(after)


def test_the_bias_of_a_network_that_is_one_layer_starts_at_zero() -> None:
    net = nn.Linear(4, 3)
    layout = Layout.of(net)
    after = PowerLayers(1.25).initialised(layout.flatten(net), layout, torch.Generator().manual_seed(1))
    assert not layout.views(after)["bias"].any()
    assert layout.views(after)["weight"].all()


def test_plain_shortcuts_start_from_the_same_normal_without_the_root() -> None:
    """The authors' number is 0.1249 for fan_in 64; PyTorch's initialisation would give 0.0722."""
    net = build_model("resnet18", 10, (3, 32, 32))
    layout, layers = Layout.of(net), PowerLayers()
    drawn = layout.views(layers.initialised(layout.flatten(net), layout, torch.Generator().manual_seed(1)))
    shortcut = drawn["layer2.0.shortcut.0.weight"].double()
    assert float(shortcut.std()) == pytest.approx(0.1249, abs=0.002)
    for stage, fan_in in ((2, 64), (3, 128), (4, 256)):
        weights = drawn[f"layer{stage}.0.shortcut.0.weight"].flatten()
        deviation = math.sqrt(1 / fan_in) / TRUNCATION
        expected = truncnorm(-2, 2, scale=deviation)  # type: ignore[no-untyped-call]
        assert kstest(weights.numpy(), expected.cdf).pvalue > 1e-3


def test_refusal() -> None:
    with pytest.raises(ValueError, match=r"beta=0\.5: the exponent must be at least 1"):
        PowerLayers(0.5)
