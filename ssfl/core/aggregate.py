"""Means over clients, in one pass and any subset."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def weighted_mean(items: Iterable[tuple[Tensor, float]]) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over an iterable of (x_k [P], w_k > 0), holding one sum at a time.

    FedAvg (McMahan et al. 2017, algorithm 1) with w_k = n_k; the saliency mean with p_k = n_k / sum n.
    The sum runs in float64 so that the order of clients does not show in float32 results (to the last bit of
    float32 in practice), then returns to the inputs' type. Raises ValueError on no items or no weight.
    """
    total = 0.0
    acc: Tensor | None = None
    kind = torch.float32
    for x, w in items:
        if acc is None:
            acc = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            kind = x.dtype
        acc.add_(x, alpha=w)
        total += w
    if acc is None or total <= 0:
        raise ValueError("a mean over no clients: no reply arrived, or all of them hold no examples")
    return acc.div_(total).to(kind)


def masked_mean(items: Iterable[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Per-coordinate mean over those that hold it: sum w m x / sum w m, and the union of the masks.

    Items are (x [P], mask [P] bool, weight). 0 where nobody holds a coordinate.
    """
    num: Tensor | None = None
    den: Tensor | None = None
    kind = torch.float32
    for x, m, w in items:
        if num is None or den is None:
            num = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            den = torch.zeros_like(num)
            kind = x.dtype
        num.add_(x * m, alpha=w)
        den.add_(m, alpha=w)
    if num is None or den is None:
        raise ValueError("a mean over no clients: no reply arrived")
    held = den > 0
    return torch.where(held, num / den.where(held, 1.0), 0.0).to(kind), held
