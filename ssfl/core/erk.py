"""ERK (Erdős-Rényi-Kernel): the density of each tensor from its shape (RigL, Evci et al. 2020; used by DisPFL)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssfl.core.layout import Layout


def erk_densities(
    shapes: Mapping[str, Sequence[int]], density: float, power_scale: float = 1.0
) -> dict[str, float]:
    """Name -> density (0, 1] of each tensor: min(1, eps * (sum(shape) / prod(shape)) ** power_scale).

    eps is chosen so that the overall density is `density`: tensors whose density would exceed 1 are dense, and eps is
    computed again for the rest. As in DisPFL's code this includes normalisation layers and biases: a one-dimensional
    tensor has the factor 1, so it is dense only if eps >= 1. `power_scale` 0 gives every tensor the same density.
    Raises ValueError for a density outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"ERK density {density}: allowed are shares kept in (0, 1]")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    factors = {
        name: (sum(shape) / sizes[name]) ** power_scale for name, shape in shapes.items() if sizes[name]
    }
    dense = {name for name in shapes if name not in factors}
    while sparse := [name for name in factors if name not in dense]:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        eps = budget / sum(factors[name] * sizes[name] for name in sparse)
        largest = max(factors[name] for name in sparse)
        if largest * eps <= 1.0:
            return {name: 1.0 if name in dense else eps * factors[name] for name in shapes}
        dense |= {name for name in sparse if factors[name] == largest}
    return dict.fromkeys(shapes, 1.0)


def trained_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every trained tensor, in layout order."""
    named = zip(layout.names, layout.shapes, layout.trained, strict=True)
    return {name: shape for name, shape, trained in named if trained}


def erk_mask(layout: Layout, density: float, generator: torch.Generator, power_scale: float = 1.0) -> Tensor:
    """A random mask [P] (bool) that keeps int(density * n) coordinates of each trained tensor, uniformly drawn.

    Running statistics [T, P) are kept. Counts are rounded down with int(), as in the authors' code.
    """
    shares = erk_densities(trained_shapes(layout), density, power_scale)
    mask = torch.ones(layout.size, dtype=torch.bool)
    for name, at, size in zip(layout.names, layout.offsets, layout.sizes, strict=True):
        if name in shares and shares[name] < 1.0:
            mask[at : at + size] = False
            kept = int(shares[name] * size)
            mask[at + torch.randperm(size, generator=generator)[:kept]] = True
    return mask
