"""Drop and grow: change a mask at constant density (dynamic sparse training; DisPFL's local mask search).

Masks are bool [T] over trained coordinates; `spans` are the (start, stop) of the tensors, which keep their counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.masks import top_k_in_spans

Spans = Sequence[tuple[int, int]]


def trained_spans(layout: Layout) -> list[tuple[int, int]]:
    """(start, stop) of each trained tensor within theta[:T]."""
    triples = zip(layout.offsets, layout.sizes, layout.trained, strict=True)
    return [(at, at + size) for at, size, trained in triples if trained]


def cosine_drop_rate(initial: float, round: int, rounds: int) -> float:
    """Share of kept weights to replace: initial / 2 * (1 + cos(pi * t / T)), t = round - 1 (DisPFL).

    `round` counts from 1, so the first round replaces `initial` and the last almost nothing.
    """
    return initial / 2 * (1 + math.cos(math.pi * (round - 1) / rounds))


def drop_count(rate: float, kept: int) -> int:
    """How many of `kept` weights to drop: ceil(rate * kept), the product in float32 as in DisPFL's code.

    With a positive rate at least one weight is replaced in every tensor.
    """
    return math.ceil(float(torch.tensor(kept, dtype=torch.float32) * rate))


def drop_counts(mask: Tensor, rate: float, spans: Spans) -> list[int]:
    """`drop_count` of every tensor of a mask [T]."""
    return [drop_count(rate, int(mask[a:b].count_nonzero())) for a, b in spans]


def drop_smallest(mask: Tensor, weights: Tensor, counts: Sequence[int], spans: Spans) -> Tensor:
    """The mask [T] without the `counts` smallest |weights| of each tensor; ties by index. A new tensor."""
    scores = weights.abs().neg_().masked_fill_(~mask, -torch.inf)
    return mask & ~top_k_in_spans(scores, counts, spans)


def grow_largest(mask: Tensor, gradient: Tensor, counts: Sequence[int], spans: Spans) -> Tensor:
    """The mask [T] with the `counts` largest |gradients| of other coordinates added in each tensor; ties by index. New.

    Coordinates that were just dropped may be added again (DisPFL's code). The criterion of RigL (Evci et al. 2020).
    """
    return mask | top_k_in_spans(gradient.abs().masked_fill_(mask, -torch.inf), counts, spans)


def grow_random(mask: Tensor, counts: Sequence[int], spans: Spans, generator: torch.Generator) -> Tensor:
    """The mask [T] with `counts` other coordinates added in each tensor, uniformly drawn. A new tensor."""
    draws = torch.rand(mask.shape, generator=generator, dtype=torch.float64).to(mask.device)
    return grow_largest(mask, draws, counts, spans)
