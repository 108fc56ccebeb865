"""Layers with pruned activations: the authors' numbers for each call, and gradients by a second method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ssfl.core.activation_pruning import (
    UNSET,
    SparseGradientConvolution,
    SparseGradientLinear,
    activation_cut,
    kept_activations,
    with_pruned_activations,
)
from ssfl.core.power import PowerLayers

FOLDER = Path(__file__).resolve().parent.parent / "oracles"
LAYERS: dict[str, Any] = json.loads((FOLDER / "sparsyfed.json").read_text())["layers"]


@cache
def arrays() -> dict[str, Tensor]:
    with np.load(FOLDER / "sparsyfed.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name.startswith("layer/")}


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal within 1e-5 of the largest entry."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def authors_layer(case: str) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The layer and its stored v and bias."""
    v, bias = arrays()[f"layer/{case}/v"], arrays().get(f"layer/{case}/bias")
    if v.dim() == 4:
        return SparseGradientConvolution(nn.Conv2d(v.shape[1], v.shape[0], 3, padding=1, bias=False)), v, None
    return SparseGradientLinear(nn.Linear(v.shape[1], v.shape[0])), v, bias


@pytest.mark.parametrize("case", LAYERS)
def test_authors_layers_call_by_call(case: str) -> None:
    layer, v0, bias0 = authors_layer(case)
    power = PowerLayers(1.25)
    everywhere = torch.ones(v0.shape, dtype=torch.bool)
    close(power.effective(v0, everywhere), arrays()[f"layer/{case}/effective_weight"])
    threshold = torch.tensor(UNSET)
    for call, facts in enumerate(LAYERS[case]["calls"]):
        given = {
            k: arrays()[f"layer/{case}/call{call}/{k}"] for k in ("x", "upstream", "out", "grad_x", "grad_v")
        }
        v, x = v0.clone().requires_grad_(), given["x"].clone().requires_grad_()
        bias = None if bias0 is None else bias0.clone().requires_grad_()
        tensors = {"weight": power.effective(v, everywhere)} | ({} if bias is None else {"bias": bias})
        if v.dim() == 4:
            tensors["threshold"] = threshold
        out = functional_call(layer, tensors, (x,))
        (out * given["upstream"]).sum().backward()  # type: ignore[no-untyped-call]
        close(out, given["out"])
        assert x.grad is not None
        assert v.grad is not None
        close(x.grad, given["grad_x"])
        close(v.grad, given["grad_v"])
        assert not v.grad[v0 == 0].any()
        if bias is not None:
            assert bias.grad is not None
            close(bias.grad, arrays()[f"layer/{case}/call{call}/grad_bias"])
        cut = threshold if v.dim() == 4 else activation_cut(given["x"], tensors["weight"])
        kept = kept_activations(given["x"], cut) != 0
        assert int(kept.count_nonzero()) == facts["kept"]
        theirs = arrays()[f"layer/{case}/call{call}/activation_kept"].bool() & (given["x"] != 0)
        assert kept.equal(theirs)
        if v.dim() == 4:
            assert float(threshold) == pytest.approx(facts["stored_threshold_after"], rel=1e-6)


CONVOLUTIONS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 2, padding="valid"),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "one": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "three": lambda: nn.Conv3d(4, 6, 2),
    "linear": lambda: nn.Linear(5, 3),
    "linear_no_bias": lambda: nn.Linear(5, 3, bias=False),
}
SHAPES = {"one": (2, 4, 5), "three": (2, 4, 5, 5, 5), "linear": (2, 3, 5), "linear_no_bias": (7, 5)}


def sparse_layer(kind: str) -> tuple[nn.Module, Tensor]:
    """An ordinary float64 layer with 30 % zeros, and an input."""
    torch.manual_seed(0)
    layer = CONVOLUTIONS[kind]().double()
    weight = next(layer.parameters())
    with torch.no_grad():
        weight.mul_(torch.rand_like(weight) > 0.3)
    return layer, torch.randn(SHAPES.get(kind, (2, 4, 7, 7)), dtype=torch.float64)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_gradients_by_two_ordinary_passes(kind: str) -> None:
    """grad x from the ordinary layer on x; grad weight and bias from the ordinary layer on explicitly pruned x."""
    layer, x = sparse_layer(kind)
    weight = next(layer.parameters())
    nonzero = Fraction(int(weight.count_nonzero()), weight.numel())
    order = x.abs().flatten().argsort(descending=True)
    kept = torch.zeros(x.numel(), dtype=torch.float64)
    chosen = order[: math.ceil(nonzero * x.numel())]
    kept[chosen] = x.flatten()[chosen]
    upstream = torch.randn_like(layer(x))
    leaf = x.clone().requires_grad_()
    (to_x,) = torch.autograd.grad((layer(leaf) * upstream).sum(), leaf)
    expected = torch.autograd.grad((layer(kept.view(x.shape)) * upstream).sum(), list(layer.parameters()))
    pruned = with_pruned_activations(layer)
    leaf = x.clone().requires_grad_()
    out = pruned(leaf)
    torch.testing.assert_close(out, layer(x))
    found = torch.autograd.grad((out * upstream).sum(), [leaf, *pruned.parameters()])
    for ours, theirs in zip(found, [to_x, *expected], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_evaluation_prunes_nothing_and_fixes_no_threshold() -> None:
    layer, x = sparse_layer("plain")
    pruned = with_pruned_activations(layer).eval()
    assert isinstance(pruned, SparseGradientConvolution)
    torch.testing.assert_close(pruned(x), layer(x))
    assert float(pruned.threshold) == UNSET


def test_a_dense_weight_prunes_nothing_and_waits() -> None:
    layer = nn.Conv2d(2, 3, 3)
    pruned = with_pruned_activations(layer)
    assert isinstance(pruned, SparseGradientConvolution)
    x = torch.randn(2, 2, 5, 5)
    found = torch.autograd.grad(pruned(x).square().sum(), pruned.weight)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(found, expected)
    assert float(pruned.threshold) == UNSET


def test_very_sparse_weights_keep_a_floor_and_empty_ones_too() -> None:
    x = torch.arange(1.0, 1001.0)
    weight = torch.zeros(10_000)
    assert float(activation_cut(x, weight)) == 991.0  # one per cent of 1000
    weight[:3] = 1
    assert float(activation_cut(x, weight)) == 991.0


def test_k_clients_at_once_are_each_alone() -> None:
    layer, x = sparse_layer("plain")
    pruned = with_pruned_activations(layer)
    weight0 = next(layer.parameters()).detach()
    weights = torch.stack([weight0 * (torch.rand_like(weight0) > 0.2 * k) for k in range(3)])
    biases, inputs = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, *x.shape, dtype=torch.float64)

    def loss(weight: Tensor, bias: Tensor, threshold: Tensor, inputs: Tensor) -> Tensor:
        tensors = {"weight": weight, "bias": bias, "threshold": threshold}
        return functional_call(pruned, tensors, (inputs,)).square().sum()  # type: ignore[no-any-return]

    leaf, thresholds = weights.clone().requires_grad_(), torch.full((3,), UNSET, dtype=torch.float64)
    (together,) = torch.autograd.grad(vmap(loss)(leaf, biases, thresholds, inputs).sum(), leaf)
    for k in range(3):
        alone, threshold = weights[k].clone().requires_grad_(), torch.tensor(UNSET, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(loss(alone, biases[k], threshold, inputs[k]), alone)
        torch.testing.assert_close(together[k], gradient)
        assert float(thresholds[k]) == float(threshold) != UNSET


def test_half_precision_contexts_work() -> None:
    layer, x = sparse_layer("plain")
    net = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(6, 2, 3), nn.Flatten(), nn.Linear(50, 3)).float()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.flatten()[::3] = 0
    pruned = with_pruned_activations(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, ordinary = pruned(x.float()), net(x.float())
    assert out.dtype == torch.bfloat16
    assert out.equal(ordinary)
    for gradient in torch.autograd.grad(out.float().sum(), list(pruned.parameters())):
        assert gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all())


def test_names_stay_and_patterns_spare_layers() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(shared, nn.ReLU(), shared), nn.Linear(4, 2))
    pruned = with_pruned_activations(net, ("1.*",))
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in net.named_parameters()]
    kinds = [type(m) for m in pruned.modules() if not isinstance(m, (nn.Sequential, nn.ReLU))]
    assert kinds == [SparseGradientConvolution, nn.Linear, SparseGradientLinear]
    both = with_pruned_activations(net)
    assert both.get_submodule("1.0") is both.get_submodule("1.2")
    assert all(p is not q for p, q in zip(net.parameters(), pruned.parameters(), strict=True))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 2, 2, padding="same")]
)
def test_refusal_names_the_layer(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer 1: activations cannot be pruned with padding.*plain_layers"):
        with_pruned_activations(nn.Sequential(nn.ReLU(), layer))


@pytest.mark.parametrize("sparse", [True, False])
def test_one_client_alone_computes_the_same(sparse: bool) -> None:
    """To the bit: thresholds, outputs, gradients, over two batches of which the second reuses the thresholds."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3)).double()
    if sparse:
        for parameter in net.parameters():
            kept = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.data.mul_(kept)
    found = []
    for alone in (False, True):
        pruned = with_pruned_activations(net)
        for layer in pruned.modules():
            if isinstance(layer, (SparseGradientConvolution, SparseGradientLinear)):
                layer.alone = alone
        for seed in (1, 2):
            x = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            leaf = x.requires_grad_()
            y = pruned(leaf)
            gradients = torch.autograd.grad(y.pow(2).sum(), [leaf, *pruned.parameters()])
            found.append([y.detach(), *gradients, pruned[0].threshold.clone()])  # type: ignore[union-attr, index]
    for mine, theirs in zip(found[:2], found[2:], strict=True):
        assert all(a.equal(b) for a, b in zip(mine, theirs, strict=True))
