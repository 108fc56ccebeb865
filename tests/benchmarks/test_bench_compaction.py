"""The compaction benchmark measures correctly: a masked SGD step, and the products that remain under a plan."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.bench_compaction import Sparse, cut, figures, parser, products_left
from benchmarks.ours import our_module
from benchmarks.workload import LR, workload
from ssfl.core.layout import Layout
from ssfl.engine.compute.compaction import Live
from ssfl.engine.compute.flat_module import FlatModule


def test_the_options() -> None:
    assert parser().parse_args(["--quick"]).quick
    assert parser().parse_args(["--model", "cnn"]).model == "cnn"


def test_a_step_is_sgd_on_the_weights_inside_the_mask() -> None:
    """Compared with w - lr g per tensor, on a network whose weights are multiplied by the mask after the step."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 10)).double()
    plain = copy.deepcopy(module)
    layout = Layout.of(module)
    flat = FlatModule(module, layout)
    scores = torch.rand(layout.prunable_size)
    theta, mask = cut(flat, flat.theta.clone(), scores, 0.25)
    assert int(layout.take_prunable(mask).sum()) == layout.prunable_size // 4
    batch = torch.randn(6, 5, dtype=torch.float64), torch.randint(10, (6,))
    logits, trained = Sparse(flat, theta, mask, [batch]).trained({})

    kept = layout.views(mask)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.mul_(kept[name])
    wanted = plain(batch[0])
    torch.testing.assert_close(logits, wanted.detach())
    named = dict(plain.named_parameters())
    gradients = torch.autograd.grad(cross_entropy(wanted, batch[1]), list(named.values()))
    with torch.no_grad():
        for (name, weight), gradient in zip(named.items(), gradients, strict=True):
            weight.sub_(LR * gradient).mul_(kept[name])
    torch.testing.assert_close(trained, layout.flatten(plain))


def test_products_left_by_hand() -> None:
    """The share of the CNN's products if a 3x3 convolution (3 to 32 channels, 32x32) keeps 8 filters and 2 columns."""
    work = workload("cnn")
    module = our_module(work)
    layout = Layout.of(module)
    flat = FlatModule(module, layout)
    sparse = Sparse(flat, flat.theta, torch.ones(layout.trained_size, dtype=torch.bool), [])
    convolution = next(n for n, w in module.named_parameters() if w.shape == (32, 3, 3, 3))
    left = products_left(sparse, {convolution: Live(torch.arange(8), torch.arange(2))}, work)
    sizes = (32 * 32 * 32 * 27, 16 * 16 * 64 * 288, 8 * 8 * 64 * 576, 1024 * 64, 64 * 10)
    biases = 32 * 32 * 32 + 16 * 16 * 64 + 8 * 8 * 64 + 64 + 10
    whole = 2 * sum(sizes)
    removed = 2 * 32 * 32 * 9 * (32 * 3 - 8 * 2)
    has_bias = any(n == convolution.replace("weight", "bias") for n, _ in module.named_parameters())
    whole += biases if has_bias else 64 + 10
    assert left == pytest.approx((whole - removed) / whole, rel=1e-9)


def test_all_rows_of_a_small_network() -> None:
    rows = {row.name: row for row in figures("cnn", (0.05,), 1)}
    assert rows["density 0.05: compacted step"].against == "whole step"
    assert rows["density 0.05: products left"].value < 1
    assert rows["density 0.05: largest difference of outputs"].value < 1e-4
    assert rows["density 0.05: largest difference in float64, 1 step"].value < 1e-12
