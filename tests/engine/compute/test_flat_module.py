"""Weights and gradients as flat vectors, compared with those of an ordinary module."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.core import pages
from ssfl.core.layout import Layout
from ssfl.engine.compute import flat_module
from ssfl.engine.compute.flat_module import FlatModule


class Twice(nn.Module):
    """A layer used twice, one that the loss does not depend on, and one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.idle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.again(x).tanh()).tanh())


def gradient_of(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By PyTorch alone."""
    module.zero_grad()
    torch.autograd.backward(cross_entropy(module(x), y))
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([p.flatten() for p in parts])


@pytest.mark.parametrize("large_bytes", [0, 50, 1 << 30])
def test_gradients_are_autograds_own(large_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_module, "MOVED_BYTES", large_bytes)
    torch.manual_seed(0)
    module = Twice()
    plain = copy.deepcopy(module)
    flat = FlatModule(module, Layout.of(module))
    for step in range(3):
        x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, step])
        torch.autograd.backward(cross_entropy(flat.module(x), y))
        assert flat.take_gradient().equal(gradient_of(plain, x, y))
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("large_bytes", [0, 1 << 30])
def test_gradients_of_a_failed_backward_pass_are_forgotten(
    large_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat_module, "MOVED_BYTES", large_bytes)
    module = Twice()
    flat = FlatModule(module, Layout.of(module))
    start = flat.layout.flatten(module)
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    wanted = gradient_of(copy.deepcopy(module), x, y)
    flat.load(start)
    torch.autograd.backward(cross_entropy(flat.module(x) + module.idle(x).sum(), y))
    flat.load(start)  # the error came before take_gradient
    torch.autograd.backward(cross_entropy(flat.module(x), y))
    assert flat.take_gradient().equal(wanted)


def test_a_second_flat_memory_of_a_module_gets_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_module, "MOVED_BYTES", 0)
    module = Twice()
    layout = Layout.of(module)
    first = FlatModule(module, layout)
    del first
    gc.collect()
    second = FlatModule(module, layout)
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0])
    torch.autograd.backward(cross_entropy(module(x), y))
    assert second.take_gradient().equal(gradient_of(copy.deepcopy(module), x, y))


@pytest.mark.parametrize("large_bytes", [0, 1 << 30])
@pytest.mark.parametrize("norm", [False, True])
def test_a_result_stays_as_it_was(large_bytes: int, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGE_BYTES", large_bytes)
    module = nn.Sequential(nn.Linear(6, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Linear(4, 3))
    layout = Layout.of(module)
    flat = FlatModule(module, layout)
    theta = torch.randn(layout.size).abs()
    flat.load(theta)
    first = flat.result()
    assert first.equal(theta)
    flat.load(2 * theta)
    assert first.equal(theta)
    assert layout.flatten(module).equal(2 * theta)
    with torch.no_grad():
        flat.trained.mul_(0.5)  # a step changes the module
    assert torch.cat([p.flatten() for p in module.parameters()]).equal(theta[: layout.trained_size])
    assert flat.result().equal(flat.theta)
    flat.load(first)
    flat.load(first)
    assert flat.result().equal(theta)
