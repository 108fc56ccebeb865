"""Factored scores: exact where scores are products of factors, at any scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssfl.core.factored import factored_size, factors_of, scores_of
from ssfl.core.layout import Layout

LAYOUT = Layout(
    ("conv.weight", "conv.bias", "out.weight"),
    ((6, 4, 3, 3), (6,), (5, 7)),
    (True, False, True),
    (True, True, True),
)


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.1


def product() -> tuple[Tensor, Tensor]:
    """Weights, and scores whose |gradients| are products of factors."""
    conv = (drawn(6, 1, 1) * drawn(1, 4, 1) * drawn(1, 1, 9)).flatten()
    weights = torch.cat([drawn(216), -drawn(35)])
    return weights, weights.abs() * torch.cat([conv, (drawn(5, 1) * drawn(1, 7)).flatten()])


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-14, 1e-20, 1e-25, 1e12])
def test_products_of_factors_are_found_again_at_any_scale(scale: float) -> None:
    """Deep networks of sigmoids have gradients of 1e-20, where a product of three factors is 0 in float32."""
    weights, scores = product()
    factors = factors_of(scores * scale, weights, LAYOUT)
    assert factors.shape == (factored_size(LAYOUT),) == (6 + 4 + 9 + 5 + 7 + 1,)
    assert torch.allclose(scores_of(factors, weights, LAYOUT) / scale, scores, rtol=1e-4, atol=0)


def test_scores_of_nothing_are_zero() -> None:
    weights, _ = product()
    factors = factors_of(torch.zeros_like(weights), weights, LAYOUT)
    assert not bool(scores_of(factors, weights, LAYOUT).any())


def test_factors_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="31 factors of scores, but the network has 32"):
        scores_of(torch.ones(31), product()[0], LAYOUT)
