"""Masks: global top-k, random masks, and the number of coordinates that a density keeps.

Everything here works on vectors over prunable coordinates [N] (see `Layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ssfl.core.words import check_word
from ssfl.native.memory_bound.selection import largest, selects
from ssfl.native.memory_bound.vectors import expands, multiply_by_mask_

Segments = Sequence[tuple[str, int, int]]
Ties = Literal["exact", "keep"]


def keep_(values: Tensor, mask: Tensor) -> Tensor:
    """values * mask, in place: zero where the mask (bool, of the same shape or of the last dimensions) is False.

    For `transform_gradient` and `project_weights`, which do this at every step.
    """
    if values.shape == mask.shape and expands(mask, values):
        return multiply_by_mask_(values, mask)
    return values.mul_(mask)


def kept_count(size: int, density: float) -> int:
    """The number of `size` coordinates that a density (share kept, 0-1) keeps: floor(size * density).

    The paper's k = floor((1 - sparsity) d), computed as the authors do, `int(size * density)`.
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density {density} is outside [0, 1]")
    return int(size * density)


def top_k_mask(scores: Tensor, keep: int, ties: Ties = "exact") -> Tensor:
    """Keep the `keep` largest scores [N] -> bool [N].

    ties="exact": exactly `keep`, equal scores by lower index. ties="keep": the authors' rule, every score
    equal to the keep-th largest is kept too, so slightly more than `keep` may remain.
    Raises ValueError for NaN scores.
    """
    check_word("ties", ties, Ties)
    if ties == "exact" and selects(scores):
        return largest(scores, [keep], [(0, scores.numel())])
    if bool(scores.isnan().any()):
        raise ValueError("a score is not a number: lower the learning rate or check the data")
    if keep <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if keep >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.numel() - keep + 1).values
    mask = scores >= threshold
    too_many = int(mask.count_nonzero()) - keep
    if ties == "exact" and too_many > 0:
        level = (scores == threshold).nonzero().squeeze(1)
        mask[level[len(level) - too_many :]] = False
    return mask


def top_k_in_spans(scores: Tensor, counts: Sequence[int], spans: Sequence[tuple[int, int]]) -> Tensor:
    """`top_k_mask` of scores[start:stop] with its own count for every span -> bool [N], False outside of them."""
    if selects(scores):
        return largest(scores, counts, spans)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for (a, b), count in zip(spans, counts, strict=True):
        mask[a:b] = top_k_mask(scores[a:b], count)
    return mask


def top_k_mask_with_floor(
    scores: Tensor, keep: int, segments: Segments, floor_density: float, ties: Ties = "exact"
) -> Tensor:
    """Global top-k -> bool [N] that keeps at least max(1, floor(n_l * floor_density)) weights in every layer l.

    This prevents layer collapse: the best coordinates of each layer are kept first, then the best of the others.
    `ties` applies to the others; the layers' minima are exact.
    Raises ValueError if the layers' minima exceed `keep`.
    """
    if floor_density <= 0:
        return top_k_mask(scores, keep, ties)
    reserved = torch.zeros_like(scores, dtype=torch.bool)
    for _, a, b in segments:
        reserved[a:b] = top_k_mask(scores[a:b], max(1, kept_count(b - a, floor_density)))
    left = keep - int(reserved.count_nonzero())
    if left < 0:
        raise ValueError(f"a floor of {floor_density} per layer needs more than the {keep} weights to keep")
    open_scores = scores.clone()
    open_scores[reserved] = -torch.inf
    return reserved | (top_k_mask(open_scores, left, ties) if left else reserved)


def random_global_mask(size: int, density: float, generator: torch.Generator) -> Tensor:
    """Exactly floor(size * density) coordinates, uniformly drawn -> bool [size]."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator)[: kept_count(size, density)]] = True
    return mask


def random_layerwise_mask(segments: Segments, density: float, generator: torch.Generator) -> Tensor:
    """floor(n_l * density) coordinates in every layer l, uniformly drawn -> bool [N]."""
    return torch.cat([random_global_mask(b - a, density, generator) for _, a, b in segments])


def shuffled_within_layers(mask: Tensor, segments: Segments, generator: torch.Generator) -> Tensor:
    """Keeps as many coordinates in every layer as `mask` [N] (bool), at uniformly random places -> bool [N]."""
    return torch.cat([mask[a:b][torch.randperm(b - a, generator=generator)] for _, a, b in segments])


def empty_layers(bits: Tensor, segments: Segments) -> list[str]:
    """Names of the layers in which a mask [N] keeps nothing."""
    return [name for name, a, b in segments if not bool(bits[a:b].any())]
