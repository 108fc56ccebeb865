"""Means over clients, in one pass and any subset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch import Tensor

from ssfl.core.pages import LARGE_BYTES, empty_apart
from ssfl.native.vectors import sums, weighted_sum

CHUNK = 1 << 19
"""Coordinates summed at a time: so many float32 sums stay in the processor's cache while the clients pass by."""
TOGETHER = 16
"""Clients summed chunk by chunk: the sum then goes through memory once for all of them."""
_NO_CLIENTS = "a mean over no clients: no reply arrived, or all of them hold no examples"


def weighted_mean(items: Iterable[tuple[Tensor, float]], expected: Sequence[float] = ()) -> Tensor:
    """sum_k w_k x_k / sum_k w_k over an iterable of (x_k [P], w_k > 0), holding one sum and 16 x_k at a time.

    expected: the weights that will come, where they are known beforehand; of large vectors one at a time is held then,
    with the same bits if they do come (and another last bit if some stay away).

    FedAvg (McMahan et al. 2017, algorithm 1) with w_k = n_k; the saliency mean with p_k = n_k / sum n.
    Sums run in the inputs' type over 16 clients and in float64 over such groups, in the items' order: replies come
    sorted by client, so the bits are the same everywhere, and the error is at most 18 roundings of the inputs' type
    (relative to sum w|x| / sum w) however many clients there are. Raises ValueError on no items or no weight.
    """
    source = iter(items)
    group = list(islice(source, 1))
    # 16 large ones would be more memory than a client's training takes.
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
        group.clear()  # before the next ones come, or both groups would be held
        group.extend(islice(source, TOGETHER))
        total += sum(w for _, w in group)
    return mean.copy_(wide.div_(total))


def _one_by_one(
    first: list[tuple[Tensor, float]], others: Iterable[tuple[Tensor, float]], expected: Sequence[float]
) -> Tensor:
    """The sums of `weighted_mean`, in the same order, over first[0], which is taken out, and the others."""
    few, total, arrived = len(expected) < TOGETHER, sum(expected), 0.0
    mean = empty_apart(first[0][0])
    wide: Tensor | None = None
    for number, (x, w) in enumerate(chain(_taken(first), others)):
        arrived += w
        factor = w / total if few else w
        if (few and number) or number % TOGETHER:
            _sum_into(mean, [(mean, 1.0), (x, factor)])
            continue
        if number:
            wide = mean.to(torch.float64, copy=True) if wide is None else wide.add_(mean)
        _sum_into(mean, [(x, factor)])
    if arrived <= 0:
        raise ValueError(_NO_CLIENTS)
    if few:
        return mean if arrived == total else mean.mul_(total / arrived)
    wide = mean.double() if wide is None else wide.add_(mean)
    return mean.copy_(wide.div_(arrived))


def _taken(items: list[tuple[Tensor, float]]) -> Iterator[tuple[Tensor, float]]:
    """Each item, no longer held by the list."""
    while items:
        yield items.pop(0)


def _sum_into(out: Tensor, items: Sequence[tuple[Tensor, float]]) -> Tensor:
    """sum_k w_k x_k, written over `out`, one client after the other."""
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


def masked_mean(items: Iterable[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Per-coordinate mean over those that hold it: sum w m x / sum w m, and the union of the masks.

    Items are (x [P], mask [P] bool, weight). 0 where nobody holds a coordinate.
    """
    num: Tensor | None = None
    den: Tensor | None = None
    kind = torch.float32
    for x, m, w in items:
        if num is None or den is None:
            num = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            den = torch.zeros_like(num)
            kind = x.dtype
        num.add_(x * m, alpha=w)
        den.add_(m, alpha=w)
    if num is None or den is None:
        raise ValueError("a mean over no clients: no reply arrived")
    held = den > 0
    return torch.where(held, num / den.where(held, 1.0), 0.0).to(kind), held
