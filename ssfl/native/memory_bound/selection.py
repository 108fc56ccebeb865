"""The largest values in each segment of a vector, in a time that does not depend on the values."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ssfl.native.library import address, available, kernels


def selects(scores: Tensor) -> bool:
    """Whether `largest` supports these scores: float32, contiguous, on the CPU, below 2^32 values."""
    here = scores.device.type == "cpu" and scores.dtype == torch.float32 and not scores.is_neg()
    return available() and here and scores.is_contiguous() and scores.numel() < 1 << 32


def largest(scores: Tensor, counts: Sequence[int], spans: Sequence[tuple[int, int]]) -> Tensor:
    """bool [N]: True at the counts[k] largest scores [N] of scores[start:stop] of spans[k], equal ones by lower index.

    A count of 0 or less selects none, one above the length all; outside the spans False.
    Raises ValueError for NaN in a span, and for spans outside the scores or another number of counts.
    """
    if len(counts) != len(spans) or not all(0 <= a <= b <= scores.numel() for a, b in spans):
        raise ValueError(f"{len(counts)} counts for spans {list(spans)} of {scores.numel()} scores")
    segments = array(
        "l", [n for (a, b), count in zip(spans, counts, strict=True) for n in (a, b, min(count, b - a))]
    )
    out = torch.zeros(scores.shape, dtype=torch.bool)
    if not kernels.select_largest(address(scores), segments.buffer_info()[0], len(spans), address(out)):
        raise ValueError("a score is not a number: lower the learning rate or check the data")
    return out
