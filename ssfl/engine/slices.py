"""Slices of a tensor at ascending numbers, and back among zeros, with gradients: what a mask has left of a layer.

By the kernels of `ssfl.native` where they serve, else by PyTorch's `index_select` and `index_copy_`; the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssfl.native import channels


def take(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The slices of x [R, C, ...] at `rows` and `columns` (int64, distinct, ascending; None: all); images keep their
    memory format."""
    rows, columns = _some(rows, x.shape[0]), _some(columns, x.shape[1])
    if rows is None and columns is None:
        return x
    apply: Any = _Take.apply
    return apply(x, rows, columns)


def spread(x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The inverse: [R, C, ...] of the first two sizes `shape`, zeros but for x at those rows and columns."""
    rows, columns = _some(rows, shape[0]), _some(columns, shape[1])
    if rows is None and columns is None:
        return x
    apply: Any = _Spread.apply
    return apply(x, rows, columns, shape)


def _some(numbers: Tensor | None, count: int) -> Tensor | None:
    return None if numbers is None or len(numbers) == count else numbers


class _Take(torch.autograd.Function):
    """Distinct numbers, so the gradient is copied into zeros instead of added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        ctx.numbers, ctx.shape = (rows, columns), tuple(x.shape[:2])
        if channels.fits(x) and (rows is None or x.is_contiguous()):
            return channels.gather(x, rows, columns)
        for dim, numbers in enumerate((rows, columns)):
            x = x if numbers is None else x.index_select(dim, numbers)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return spread(gradients[0], *ctx.numbers, ctx.shape), None, None


class _Spread(torch.autograd.Function):
    """The inverse of `_Take`, and each is the other's gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.numbers = (rows, columns)
        if channels.fits(x) and (rows is None or x.is_contiguous()):
            return channels.scatter(x, rows, columns, shape)
        for dim, numbers in enumerate((rows, columns)):
            x = x if numbers is None else _among_zeros(x, dim, numbers, shape[dim])
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return take(gradients[0], *ctx.numbers), None, None, None


def _among_zeros(x: Tensor, dim: int, numbers: Tensor, count: int) -> Tensor:
    """index_copy_ into zeros of x's memory format."""
    shape = [count if d == dim else size for d, size in enumerate(x.shape)]
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    zeros = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form).zero_()
    return zeros.index_copy_(dim, numbers, x)
