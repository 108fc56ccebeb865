"""A network as a function of a vector: the module does not change, also if forward passes assign tensors."""

from __future__ import annotations

import torch
from torch import nn

from ssfl.core.layout import Layout
from ssfl.core.net import FlatNet, placed
from tests.support.networks import Assigned, SharedLayer


def test_a_layer_in_two_places_is_as_before_after_the_call() -> None:
    module = SharedLayer().double()
    layout = Layout.of(module)
    before = dict(module.named_parameters(remove_duplicate=False))
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    expected = module(x)
    theta = layout.flatten(module)
    assert FlatNet(module, layout).logits(theta, x).equal(expected)
    assert not FlatNet(module, layout).logits(theta + 0.1, x).equal(expected)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    assert module(x).equal(expected)


def test_a_buffer_that_forward_assigns_anew_is_brought_back() -> None:
    module = Assigned().double().train()
    layout = Layout.of(module)
    net, theta = FlatNet(module, layout), layout.flatten(module)
    own = net.statistics(theta)
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    net.logits(theta[: layout.trained_size], x, own)
    torch.testing.assert_close(own["mean"], 0.1 * module.body(x.flatten(1)).detach().mean(0))
    assert not bool(module.mean.any())


def test_attributes_are_placed_by_name() -> None:
    module = nn.Sequential(nn.Identity())
    module[0].factor = torch.tensor(1.0)
    with placed(module, {"0.factor": torch.tensor(3.0)}):
        assert float(module[0].factor) == 3  # type: ignore[arg-type]
    assert float(module[0].factor) == 1
