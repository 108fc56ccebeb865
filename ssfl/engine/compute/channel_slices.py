"""Slices of a tensor at ascending indices, and the inverse that fills with zeros, with gradients; for masked layers.

Uses the kernels of `ssfl.native` if they support the tensor, else PyTorch's `index_select` and `index_copy_`; the bits
are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssfl.native.memory_bound import channels


def take(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The slices of x [R, C, ...] at `rows` and `columns` (int64, distinct, ascending; None: all); images keep their
    memory format."""
    rows, columns = _some(rows, x.shape[0]), _some(columns, x.shape[1])
    if rows is None and columns is None:
        return x
    apply: Any = _Take.apply
    return apply(x, rows, columns)


def spread(x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The inverse: [R, C, ...] whose first two sizes are `shape`: x at those rows and columns, zeros elsewhere."""
    rows, columns = _some(rows, shape[0]), _some(columns, shape[1])
    if rows is None and columns is None:
        return x
    apply: Any = _Spread.apply
    return apply(x, rows, columns, shape)


def _some(numbers: Tensor | None, count: int) -> Tensor | None:
    return None if numbers is None or len(numbers) == count else numbers


class _Take(torch.autograd.Function):
    """The indices are distinct, so the gradient is copied into zeros instead of added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        ctx.rows, ctx.columns, ctx.shape, ctx.form = rows, columns, x.shape[:2], channels.memory_format(x)
        if channels.fits(x, rows):
            return channels.gather(x, rows, columns)
        for dim, numbers in enumerate((rows, columns)):
            x = x if numbers is None else x.index_select(dim, numbers)
        return x.contiguous(memory_format=ctx.form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # In x's memory format: a library's gradient of a filter may have channels last.
        gradient = gradients[0].contiguous(memory_format=ctx.form)
        return spread(gradient, ctx.rows, ctx.columns, ctx.shape), None, None


class _Spread(torch.autograd.Function):
    """The inverse of `_Take`; each is the gradient of the other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: Sequence[int]
    ) -> Tensor:
        ctx.rows, ctx.columns, ctx.form = rows, columns, channels.memory_format(x)
        if channels.fits(x, rows):
            return channels.scatter(x, rows, columns, shape)
        for dim, numbers in enumerate((rows, columns)):
            if numbers is not None:
                sizes = [shape[d] if d == dim else n for d, n in enumerate(x.shape)]
                x = torch.empty(sizes, dtype=x.dtype, device=x.device).zero_().index_copy_(dim, numbers, x)
        return x.contiguous(memory_format=ctx.form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous(memory_format=ctx.form)
        return take(gradient, ctx.rows, ctx.columns), None, None, None
