"""Coordinates of a layout, one by one, independent of the vectorised functions under test."""

from __future__ import annotations

import torch
from torch import Tensor

from ssfl.core.layout import Layout


def prunable_coordinates(layout: Layout) -> Tensor:
    """[P] bool: True where a coordinate may be pruned."""
    tensors = zip(layout.sizes, layout.prunable, strict=True)
    return torch.tensor([prunable for size, prunable in tensors for _ in range(size)], dtype=torch.bool)
