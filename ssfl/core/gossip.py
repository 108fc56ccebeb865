"""Averaging sparse models that hold different coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssfl.core.payloads import SparseValues, dense_values


def overlap_mean(parts: Sequence[SparseValues]) -> Tensor:
    """sum_j w_j / sum_j m_j per coordinate [P] over models with their masks; 0 where nobody holds it.

    The gossip average of DisPFL (Dai et al., ICML 2022), weighted by overlap and not by data: every model counts the
    same. Sums run in float64, so the order of the models does not show. Raises ValueError on no models.
    """
    if not parts:
        raise ValueError("a mean over no models: a client needs at least its own")
    first = parts[0].values
    total = torch.zeros(parts[0].bits.shape, dtype=torch.float64, device=first.device)
    holders = torch.zeros(parts[0].bits.shape, dtype=torch.int32, device=first.device)
    for part in parts:
        total.add_(dense_values(part))
        holders.add_(part.bits)
    # Where nobody holds a coordinate the total is 0, and so is the quotient by one.
    return total.div_(holders.clamp_min_(1)).to(first.dtype)
