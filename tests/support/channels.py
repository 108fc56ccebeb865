"""Channels gathered and scattered with PyTorch's functions."""

from __future__ import annotations

from torch import Tensor


def by_pytorch(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    x = x if rows is None else x.index_select(0, rows)
    return x if columns is None else x.index_select(1, columns)


def back_by_pytorch(x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, int]) -> Tensor:
    for dim, numbers in ((0, rows), (1, columns)):
        if numbers is not None:
            sizes = list(x.shape)
            sizes[dim] = shape[dim]
            x = x.new_zeros(sizes).index_copy_(dim, numbers, x)
    return x
