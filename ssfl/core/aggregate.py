"""Weighted means over any subset of clients, in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from ssfl.core.pages import LARGE_BYTES, empty_apart
from ssfl.native.memory_bound.vectors import sums, weighted_sum

CHUNK = 1 << 19
"""Coordinates summed at a time: this many float32 sums fit the processor's cache."""
TOGETHER = 16
"""Clients summed together, so that the sum is read and written once for all of them."""
_NO_CLIENTS = "a mean over no clients: no reply arrived, or all of them hold no examples"


def weighted_mean(items: Iterable[tuple[Tensor, float]], expected: Sequence[float] = ()) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over an iterable of (x_k [P], w_k > 0), holding one sum and 16 x_k in memory.

    expected: the weights of all items, if they are known beforehand. Large vectors are then held one at a time; the
    bits are the same if all items arrive (if some are missing, the last bit may differ).

    FedAvg (McMahan et al. 2017, algorithm 1) with w_k = n_k; the saliency mean with p_k = n_k / sum n.
    Sums are computed in the inputs' type over 16 clients and in float64 over such groups, in the items' order. Replies
    are sorted by client, so the bits are the same everywhere. The error is at most 18 roundings of the inputs' type
    (relative to sum w|x| / sum w) for any number of clients. Raises ValueError without items or if all weights are 0.
    """
    source = iter(items)
    group = list(islice(source, 1))
    # 16 large vectors would need more memory than a client's training.
    if sum(expected) > 0 and group and group[0][0].nbytes >= LARGE_BYTES:
        return _one_by_one(group, source, expected)
    group += islice(source, TOGETHER - 1)
    total = sum(w for _, w in group)
    if not group or total <= 0:
        raise ValueError(_NO_CLIENTS)
    mean = torch.empty_like(group[0][0])
    if len(group) < TOGETHER:
        return _sum_into(mean, [(x, w / total) for x, w in group])
    wide = torch.zeros_like(mean, dtype=torch.float64)
    while group:
        wide += _sum_into(mean, group)
        group.clear()  # before the next group is read; otherwise both would be in memory
        group.extend(islice(source, TOGETHER))
        total += sum(w for _, w in group)
    return mean.copy_(wide.div_(total))


def _one_by_one(
    first: list[tuple[Tensor, float]], others: Iterable[tuple[Tensor, float]], expected: Sequence[float]
) -> Tensor:
    """The sums of `weighted_mean` in the same order, over first[0] (which is removed) and the others."""
    few, total, arrived, number = len(expected) < TOGETHER, sum(expected), 0.0, 0
    mean = empty_apart(first[0][0])
    wide: Tensor | None = None
    for x, w in chain(_taken(first), others):
        arrived += w
        factor = w / total if few else w
        added = bool(few and number) or number % TOGETHER > 0
        if number and not added:
            wide = mean.to(torch.float64, copy=True) if wide is None else wide.add_(mean)
        _sum_into(mean, [(mean, 1.0), (x, factor)] if added else [(x, factor)])
        number += 1  # noqa: SIM113 (`enumerate` would keep x while the next one is received)
        del x
    if arrived <= 0:
        raise ValueError(_NO_CLIENTS)
    if few:
        return mean if arrived == total else mean.mul_(total / arrived)
    wide = mean.double() if wide is None else wide.add_(mean)
    return mean.copy_(wide.div_(arrived))


def _taken(items: list[tuple[Tensor, float]]) -> Iterator[tuple[Tensor, float]]:
    """Yields and removes each item, so that the list does not keep it alive."""
    while items:
        yield items.pop(0)


def _sum_into(out: Tensor, items: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Writes sum_k w_k x_k into `out`, in the order of the items."""
    vectors = [x for x, _ in items]
    if sums([*vectors, out]):
        return weighted_sum(vectors, [w for _, w in items], out)
    for start in range(0, out.numel(), CHUNK):
        piece = slice(start, start + CHUNK)
        here = out[piece]
        torch.mul(vectors[0][piece], items[0][1], out=here)
        for x, w in items[1:]:
            here.add_(x[piece], alpha=w)
    return out
