"""Factored saliency scores: a few numbers per layer instead of one per weight.

|gradient| of a weight is close to a product of factors of its row (output channel), its column (input channel) and its
position in the kernel: s_ijt = |w_ijt| r_i c_j t_t. A client sends the means of s / |w| over rows, columns and
positions; the server, which knows w, averages them over clients. They are additive, so secure aggregation or noise can
be applied, and they reveal little about a client's data.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ssfl.core.layout import Layout


def factored_size(layout: Layout) -> int:
    """F: rows + columns + kernel positions of all prunable tensors."""
    return sum(sum(shape) for shape in _kernel_shapes(layout))


def factors_of(scores: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """Factors [F] of scores [N] of weights [N]: per prunable tensor the means of s / |w| over rows, columns, positions.

    Weights that are 0 count as 0.
    """
    size = weights.abs()
    per_weight = torch.where(size > 0, scores / size, 0.0)
    means = [
        part.mean(dim=[d for d in range(3) if d != kept])
        for part in _kernels(per_weight, layout)
        for kept in range(3)
    ]
    return torch.cat(means) if means else scores.new_zeros(0)


def scores_of(factors: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """Scores [N] from factors [F]: |w| times the product of its three means, divided by the tensor's squared mean.

    This has the scale of the original scores, so that tensors are comparable. Raises ValueError for another length.
    """
    if factors.shape != (factored_size(layout),):
        raise ValueError(f"{len(factors)} factors of scores, but the network has {factored_size(layout)}")
    found, at = [], 0
    for size in _kernels(weights.abs(), layout):
        own = factors[at : at + sum(size.shape)].clamp(min=0)
        rows, columns, positions = torch.split(own, list(size.shape))
        at += sum(size.shape)
        mean = rows.mean()
        # Divided before they are multiplied: the product of three small means is 0 in float32, and 1 / mean² infinite.
        columns, positions = (torch.where(mean > 0, part / mean, 0.0) for part in (columns, positions))
        found.append((size * rows[:, None, None] * columns[:, None] * positions).reshape(-1))
    return torch.cat(found) if found else weights.new_zeros(0)


def _kernel_shapes(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """(rows, columns, positions) of each prunable tensor; a vector is one row."""
    for shape, size, prunable in zip(layout.shapes, layout.sizes, layout.prunable, strict=True):
        if prunable and size:
            rows, columns = (shape[0], shape[1]) if len(shape) > 1 else (1, size)
            yield rows, columns, size // (rows * columns)


def _kernels(vector: Tensor, layout: Layout) -> Iterator[Tensor]:
    """The parts of a vector [N] as kernels [rows, columns, positions]."""
    at = 0
    for shape in _kernel_shapes(layout):
        size = shape[0] * shape[1] * shape[2]
        yield vector[at : at + size].view(shape)
        at += size
