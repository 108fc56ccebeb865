"""Minibatches of several clients at once, as positions in their concatenated examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One minibatch of the first k clients.

    places: int64 [B, k], positions in the concatenated examples of all clients. missing: bool [B, k], True if the
    client has no example left; its last example is repeated there.
    """

    places: Tensor
    missing: Tensor


def steps_side_by_side(sizes: Sequence[int], batch_size: int) -> Iterator[Step]:
    """Steps of clients with decreasing `sizes`; a step omits clients without a batch left.

    Raises ValueError if a client has more examples than the previous one.
    """
    if any(before < after for before, after in pairwise(sizes)):
        raise ValueError(f"clients with {list(sizes)} examples: order them, the largest first")
    own = torch.tensor(sizes)
    ends = own.cumsum(0)
    for start in range(0, max(sizes, default=0), batch_size):
        clients = int((own > start).sum())
        positions = torch.arange(start, min(start + batch_size, sizes[0]))[:, None]
        last = (own[:clients] - 1)[None, :]
        places = torch.minimum(positions, last) + (ends - own)[:clients]
        yield Step(places, positions > last)
