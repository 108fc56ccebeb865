"""Averages of sparse models with different masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssfl.core.payloads import SparseValues, dense_values


def overlap_mean(parts: Sequence[SparseValues]) -> Tensor:
    """sum_j w_j / sum_j m_j per coordinate [P] over models with masks; 0 where no mask keeps the coordinate.

    DisPFL's average over neighbours (Dai et al., ICML 2022): all models have equal weight, whatever their number of
    examples. Sums are float64, so that the order of models does not matter. Raises ValueError for no models.
    """
    if not parts:
        raise ValueError("a mean over no models: a client needs at least its own")
    first = parts[0].values
    total = torch.zeros(parts[0].bits.shape, dtype=torch.float64, device=first.device)
    holders = torch.zeros(parts[0].bits.shape, dtype=torch.int32, device=first.device)
    for part in parts:
        total.add_(dense_values(part))
        holders.add_(part.bits)
    # Where no mask keeps a coordinate the total is 0, and it is divided by 1.
    return total.div_(holders.clamp_min_(1)).to(first.dtype)
