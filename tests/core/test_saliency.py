"""Scores compared with second methods: finite differences, autograd of a mask variable, explicit Hessians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, nll_loss, scaled_dot_product_attention

from ssfl.core.attention import PlainAttention, plain_attention
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet, trained_gradient
from ssfl.core.saliency import (
    GRADIENT,
    GRASP,
    MAGNITUDE,
    SALIENCIES,
    SNIP,
    SNIP_RAW_LOGITS,
    SYNFLOW,
    Saliency,
)
from tests.support.networks import Attention
from tests.support.rigs import tiny_net


def a_batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def smooth_net() -> nn.Module:
    """A smooth network, so that finite differences converge."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
        ).double()


def flat(module: nn.Module) -> tuple[FlatNet, Tensor]:
    layout = Layout.of(module)
    return FlatNet(module, layout), layout.flatten(module)


def loss_at(net: FlatNet, theta: Tensor, batch: Batch) -> float:
    """The loss with theta copied into the module's parameters."""
    tensors = {n: v.clone() for n, v in net.layout.views(theta).items()}
    return float(cross_entropy(functional_call(net.module, tensors, (batch[0],)), batch[1]))


def mask_variable_scores(module: nn.Module, batch: Batch, raw_logits: bool) -> dict[str, Tensor]:
    """|dL/dc| for an all-ones mask c on every prunable weight, as the authors' earlier code defines its score."""
    weights = {n: p.detach() for n, p in module.named_parameters()}
    prunable = {n for n, p in weights.items() if p.dim() > 1}
    masks = {n: torch.ones_like(weights[n], requires_grad=True) for n in prunable}
    masked = {n: p * masks[n] if n in masks else p for n, p in weights.items()}
    logits = functional_call(module, masked, (batch[0],))
    loss = nll_loss(logits, batch[1]) if raw_logits else cross_entropy(logits, batch[1])
    grads = torch.autograd.grad(loss, [masks[n] for n in sorted(masks)])
    return {n: g.abs() for n, g in zip(sorted(masks), grads, strict=True)}


def test_snip_against_central_differences() -> None:
    """s_j = |w_j dL/dw_j| is the slope of the loss in a factor on w_j, measured without autograd."""
    net, theta = flat(smooth_net())
    batch = a_batch()
    scores, step = SNIP.score(net, theta, batch), 1e-5
    for j in range(0, len(theta), 7):
        bump = torch.zeros_like(theta)
        bump[j] = step * theta[j]
        slope = (loss_at(net, theta + bump, batch) - loss_at(net, theta - bump, batch)) / (2 * step)
        assert float(scores[j]) == pytest.approx(abs(slope), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("raw_logits", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_scores_equal_the_gradient_of_a_mask_variable(norm: str, raw_logits: bool, training: bool) -> None:
    module = tiny_net(norm).double().train(training)
    net, theta = flat(module)
    saliency = SNIP_RAW_LOGITS if raw_logits else SNIP
    ours = net.layout.views(saliency.score(net, theta, a_batch()))
    for name, theirs in mask_variable_scores(module, a_batch(), raw_logits).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-10, atol=1e-14)


def test_raw_logits_have_a_constant_gradient() -> None:
    """For the last bias b_c it is the share of class c in the batch, for any weights (paper-level fact)."""
    module = smooth_net()
    net, theta = flat(module)
    x, y = a_batch(6)
    bias = net.layout.views(SNIP_RAW_LOGITS.score(net, theta, (x, y)))["4.bias"]
    share = torch.bincount(y, minlength=3).double() / len(y)
    torch.testing.assert_close(bias, share * module[4].bias.detach().abs())  # type: ignore[index]


def test_grasp_against_an_explicit_hessian() -> None:
    net, theta = flat(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double())
    batch = a_batch()

    def loss(v: Tensor) -> Tensor:
        return cross_entropy(batch[0].flatten(1) @ v[:108].view(3, 36).T + v[108:], batch[1])

    leaf = theta.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in first]
    expected = theta * (torch.stack(rows) @ first.detach())
    torch.testing.assert_close(GRASP.score(net, theta, batch), expected, rtol=1e-9, atol=1e-12)


def test_synflow_of_a_linear_chain_by_hand() -> None:
    """R = 1^T |W2| |W1| 1; score of a weight = the sum of the paths through it."""
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    net, _ = flat(module)
    theta = torch.tensor([1.0, -2.0, 3.0, 4.0, -5.0, 6.0], dtype=torch.float64)
    data = torch.full((4, 2), 9.0, dtype=torch.float64)
    scores = SYNFLOW.score(net, theta, (data, torch.zeros(4, dtype=torch.int64)))
    assert scores.tolist() == [5.0, 10.0, 18.0, 24.0, 15.0, 42.0]


def test_magnitude_and_gradient() -> None:
    net, theta = flat(smooth_net())
    batch = a_batch()
    assert MAGNITUDE.score(net, theta, batch).equal(theta.abs())
    torch.testing.assert_close(
        (GRADIENT.score(net, theta, batch) * theta).abs(), SNIP.score(net, theta, batch)
    )


def test_a_saliency_is_a_function_of_the_gradient_or_of_the_network() -> None:
    def product(gradient: Tensor, theta: Tensor) -> Tensor:
        return gradient * theta

    def squares(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
        return theta**2

    net, theta = flat(smooth_net())
    gradient = trained_gradient(net, theta, a_batch())
    assert Saliency(of_gradient=product).score(net, theta, a_batch()).equal(gradient * theta)
    assert Saliency(of_network=squares).score(net, theta, a_batch()).equal(theta**2)
    for neither_or_both in ({}, {"of_gradient": product, "of_network": squares}):
        with pytest.raises(ValueError, match="give one of them"):
            Saliency(**neither_or_both)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SALIENCIES)
def test_scoring_leaves_weights_and_statistics_alone(name: str) -> None:
    module = tiny_net("batch").double()
    net, theta = flat(module)
    module.train(SALIENCIES[name].training_mode)
    before, state = theta.clone(), {k: v.clone() for k, v in module.state_dict().items()}
    scores = SALIENCIES[name].score(net, theta, a_batch())
    assert scores.shape == (net.layout.trained_size,)
    assert not scores.requires_grad
    assert theta.equal(before)
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            assert value.equal(state[key]), key


def test_a_statistics_vector_apart_is_updated_in_place() -> None:
    module = tiny_net("batch").double().train()
    net, theta = flat(module)
    size = net.layout.trained_size
    apart = net.statistics(theta)
    net.logits(theta[:size], a_batch()[0], apart)
    other = tiny_net("batch").double().train()
    other(a_batch()[0])
    theirs = dict(other.named_buffers())
    assert len(apart) == 4
    for name, updated in apart.items():
        torch.testing.assert_close(updated, theirs[name])


def test_trained_gradient_matches_backward() -> None:
    module = tiny_net("group").double()
    net, theta = flat(module)
    x, y = a_batch()
    ours = trained_gradient(net, theta, (x, y))
    grads = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
    torch.testing.assert_close(ours, torch.cat([g.flatten() for g in grads]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("masked", ["none", "bool", "float", "causal"])
def test_plain_attention_is_pytorchs(masked: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64)
    masks = {"bool": torch.ones(5, 5).tril().bool(), "float": torch.randn(5, 5, dtype=torch.float64)}
    given: dict[str, Any] = {"attn_mask": masks.get(masked), "is_causal": masked == "causal"}
    expected = scaled_dot_product_attention(q, k, v, **given)
    with PlainAttention():
        found = scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain_attention(q, k, v, **given), expected, rtol=0, atol=1e-12)


def test_grasp_of_attention_is_the_hessian_times_the_gradient() -> None:
    """Compared with a central difference of the gradient along the gradient."""
    module = Attention().double()
    layout = Layout.of(module)
    net, theta = FlatNet(module, layout), layout.flatten(module)
    module.eval()
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(5, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(5) % 3
    score = GRASP.score(net, theta, batch)
    gradient, step = trained_gradient(net, theta, batch), 1e-5
    ahead, behind = (trained_gradient(net, theta + sign * step * gradient, batch) for sign in (1, -1))
    torch.testing.assert_close(score, theta * (ahead - behind) / (2 * step), rtol=0, atol=1e-7)
