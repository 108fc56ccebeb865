"""Layers over K clients compared with PyTorch's layer for each client, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ssfl.core.layout import Layout
from ssfl.engine.executors.batched.layers import NotStackedError, Stacked
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.batched.pixel_pool import max_pool2d
from tests.support.rigs import tiny_net

K, B = 3, 5


class Residual(nn.Module):
    """A sum of two paths, and view(len, -1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.out = nn.Linear(4 * 36, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.conv(x))
        return self.out(x.view(x.size(0), -1))  # type: ignore[no-any-return]


class Globally(nn.Module):
    """Operations without a rule: a mean over pixels, and standardised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.conv.bias).mean((2, 3))


def features(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "conv": lambda: features(nn.Conv2d(4, 6, 3, stride=2, padding=1)),
    "conv without bias": lambda: features(nn.Conv2d(4, 4, (3, 1), dilation=2, bias=False)),
    "same padding": lambda: features(nn.Conv2d(4, 2, 3, padding="same")),
    "norm": lambda: features(nn.GroupNorm(2, 4), nn.ReLU()),
    "norm without weights": lambda: features(nn.GroupNorm(4, 4, affine=False)),
    "pool": lambda: features(nn.MaxPool2d(2)),
    "pool that overlaps": lambda: features(nn.MaxPool2d(3, 2, 1), nn.ReLU(inplace=True)),
    "pool, rounded up": lambda: features(nn.MaxPool2d((4, 3), ceil_mode=True)),
    "mean pool": lambda: features(nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(2)),
    "residual": Residual,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 3)),
    "whole": lambda: tiny_net(channels=4),
}


def block(make: Callable[[], nn.Module]) -> tuple[nn.Module, Layout, Tensor, Tensor, Tensor]:
    """A network, K clients' weights [K, P] and batches x [B, K, 4, 6, 6] (with ties), y [B, K]."""
    torch.default_generator.manual_seed(0)
    module = make().double()
    module(torch.zeros(2, 4, 6, 6, dtype=torch.float64))  # initialises lazy layers
    layout = Layout.of(module)
    theta = layout.flatten(module) + 0.3 * torch.randn(K, layout.size, dtype=torch.float64)
    x = torch.randn(B, K, 4, 6, 6, dtype=torch.float64).mul_(3).round_()
    return module, layout, theta, x, torch.randint(0, 3, (B, K))


def alone(module: nn.Module, layout: Layout, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Each client with PyTorch's functions: losses [K], gradients [K, P]."""
    losses, gradients = [], []
    for k in range(len(theta)):
        leaf = theta[k].clone().requires_grad_()
        loss = F.cross_entropy(functional_call(module, layout.views(leaf), (x[:, k],)), y[:, k])
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    return torch.stack(losses), torch.stack(gradients)


@pytest.mark.parametrize("name", NETS)
def test_losses_and_gradients_are_those_of_each_client_alone(name: str) -> None:
    module, layout, theta, x, y = block(NETS[name])
    y[-1, 1] = -100  # padding
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    net = BlockNet(module, layout)
    found = net.losses_and_gradient(theta, (x, y))
    expected = alone(module, layout, theta, x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert net.stacks(x)
    after = dict(module.named_parameters())
    assert all(isinstance(after[n], nn.Parameter) and after[n].equal(p) for n, p in before.items())


def test_a_network_without_rules_is_left_to_vmap() -> None:
    module, layout, theta, x, y = block(Globally)
    net = BlockNet(module, layout)
    torch.testing.assert_close(
        net.losses_and_gradient(theta, (x, y)), alone(module, layout, theta, x, y), rtol=0, atol=1e-12
    )
    assert not net.stacks(x)


def test_weights_that_two_layers_share_get_both_gradients() -> None:
    def tied() -> nn.Module:
        layer = nn.Conv2d(4, 4, 3, padding=1)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(144, 3))

    module, layout, theta, x, y = block(tied)
    found = BlockNet(module, layout).losses_and_gradient(theta, (x, y))
    torch.testing.assert_close(found, alone(module, layout, theta, x, y), rtol=0, atol=1e-12)


def test_a_weight_that_is_never_used_gets_no_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(2, 2)
            self.out = nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.flatten(1))  # type: ignore[no-any-return]

    module, layout, theta, x, y = block(Idle)
    _, gradient = BlockNet(module, layout).losses_and_gradient(theta, (x, y))
    assert layout.views(gradient)["idle.weight"].abs().sum() == 0
    assert layout.views(gradient)["out.weight"].abs().sum() > 0


ODD: Mapping[str, Callable[[Any], object]] = {
    "product": lambda x: x * 2,
    "index": lambda x: x[:, 0],
    "comparison": lambda x: x == 0,
    "truth": lambda x: bool(x),
    "a function without a rule": torch.sigmoid,
    "an attribute": lambda x: x.mean(1),
    "another shape": lambda x: x.view(-1, 3),
    "a flatten from elsewhere": lambda x: x.flatten(),
    "a sum with one that all share": lambda x: x + torch.ones(5, 4, 6, 6),
    "a layer's weights that all share": lambda x: F.conv2d(x, torch.ones(2, 4, 1, 1)),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "a linear layer over images": lambda x: F.linear(x, Stacked(torch.ones(K, 2, 6), K)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ODD)
def test_anything_else_is_refused(name: str) -> None:
    x = Stacked.of_inputs(torch.randn(B, K, 4, 6, 6))
    assert x.shape == (B, 4, 6, 6)
    assert (len(x), x.dim(), x.size(1)) == (B, 4, 4)
    with pytest.raises((NotStackedError, TypeError, AttributeError)):
        ODD[name](x)


# ── pooling ──────────────────────────────────────────────────────────────────────────────────────────────────────
WINDOWS: Mapping[str, tuple[Any, ...]] = {
    "halved": (2, None),
    "stride": (2, 1),
    "padded": (3, 2, 1),
    "dilated": (2, (2, 1), 0, (1, 2)),
    "rounded up": ((2, 4), None, 0, 1, True),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("side", [7, 18])
def test_pooling_is_pytorchs_to_the_bit(name: str, side: int) -> None:
    """Integers give ties, where the first maximum gets the gradient; 18 x 18 pixels need indices of over 8 bits."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(-2, 3, (2, 6, 7, side), generator=generator).float()
    if side == 18:
        values = values.repeat(1, 1, 3, 1)
    values[0, 0, 0, 0] = float("nan")
    mine, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    out, expected = max_pool2d(mine, *WINDOWS[name]), F.max_pool2d(theirs, *WINDOWS[name])
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    upstream = torch.randn(expected.shape, generator=generator)
    found, wanted = (torch.autograd.grad(o, i, upstream)[0] for o, i in ((out, mine), (expected, theirs)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
