"""Means over clients, in one pass and any subset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Coordinates summed at a time: a float64 sum and a converted input of this size stay in the processor's cache."""
TOGETHER = 16
"""Clients summed chunk by chunk: the sum then goes through memory once for all of them."""


def weighted_mean(items: Iterable[tuple[Tensor, float]]) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over an iterable of (x_k [P], w_k > 0), holding one sum and 16 x_k at a time.

    FedAvg (McMahan et al. 2017, algorithm 1) with w_k = n_k; the saliency mean with p_k = n_k / sum n.
    The sum runs in float64 so that the order of clients does not show in float32 results (to the last bit of
    float32 in practice), then returns to the inputs' type. Raises ValueError on no items or no weight.
    """
    source = iter(items)
    group = list(islice(source, TOGETHER))
    total = sum(w for _, w in group)
    if len(group) < TOGETHER and total > 0:
        out = torch.empty_like(group[0][0])
        for piece, acc in _chunk_sums(group):
            out[piece] = acc.div_(total)
        return out
    if not group or total <= 0:
        raise ValueError("a mean over no clients: no reply arrived, or all of them hold no examples")
    sums = torch.zeros(group[0][0].shape, dtype=torch.float64, device=group[0][0].device)
    kind = group[0][0].dtype
    while group:
        for piece, acc in _chunk_sums(group):
            sums[piece] += acc
        group = list(islice(source, TOGETHER))
        total += sum(w for _, w in group)
    return sums.div_(total).to(kind)


def _chunk_sums(items: Sequence[tuple[Tensor, float]]) -> Iterator[tuple[slice, Tensor]]:
    """sum_k w_k x_k in float64, piece by piece; a piece's tensor is used again for the next one."""
    size, device = items[0][0].numel(), items[0][0].device
    acc, wide = (torch.empty(min(CHUNK, size), dtype=torch.float64, device=device) for _ in range(2))
    for start in range(0, size, CHUNK):
        piece = slice(start, min(start + CHUNK, size))
        here, converted = acc[: piece.stop - start], wide[: piece.stop - start]
        here.zero_()
        for x, w in items:
            # Two steps, because adding float32 to float64 in one converts element by element.
            here.add_(converted.copy_(x[piece]), alpha=w)
        yield piece, here


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
