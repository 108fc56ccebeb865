"""Several clients' examples in steps, side by side: which of the concatenated examples stands where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One minibatch of the k leading clients.

    places: int64 [B, k], positions among all clients' examples laid end to end. missing: bool [B, k], where a
    client has no example of its own left; its last one stands there.
    """

    places: Tensor
    missing: Tensor


def steps_side_by_side(sizes: Sequence[int], batch_size: int) -> Iterator[Step]:
    """Steps of clients with `sizes` examples, none more than the one before; a client without a batch left drops out.

    ValueError where a client has more examples than the one before it.
    """
    if any(before < after for before, after in pairwise(sizes)):
        raise ValueError(f"clients side by side have {list(sizes)} examples; order them, the largest first")
    own = torch.tensor(sizes)
    ends = own.cumsum(0)
    for start in range(0, max(sizes, default=0), batch_size):
        clients = int((own > start).sum())
        positions = torch.arange(start, min(start + batch_size, sizes[0]))[:, None]
        last = (own[:clients] - 1)[None, :]
        places = torch.minimum(positions, last) + (ends - own)[:clients]
        yield Step(places, positions > last)
