"""Gathers the channels of images and filters that a mask keeps, and scatters them into zeros, in one pass.

Equal to the bit to `index_select` and `index_copy_`, which process images with channels last one channel at a time, and
filters once for rows and once for columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssfl.native.library import address, available, kernels

_ALL = -1
_Kernel = Callable[[tuple[int, int, int], int, int, int, int, int, int], None]


def fits(x: Tensor, rows: Tensor | None = None) -> bool:
    """Whether the kernels support x [R, C, ...]: float32 in host memory, contiguous or with channels last.

    With channels last, `rows` must be None.
    """
    if not available() or x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() < 2:
        return False
    return x.is_contiguous() or (rows is None and _channels_last(x))


def gather(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """x [R, C, ...] at the ascending indices `rows` and `columns` (int64; None: all), in x's memory format.

    Raises ValueError if x is not supported (`fits`), IndexError for indices out of range or not ascending.
    """
    _check(x, rows, columns)
    out = _empty(x, _count(rows, x.shape[0]), _count(columns, x.shape[1]))
    _move(kernels.gather_slices, x, rows, columns, x, out)
    return out


def scatter(x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The inverse of `gather`: [R, C, ...] with first sizes `shape`, x at these rows and columns, zeros elsewhere.

    Raises as `gather`, and ValueError if x has another number of rows or columns than there are indices.
    """
    _check(x, rows, columns)
    wanted = (_count(rows, shape[0]), _count(columns, shape[1]))
    if tuple(x.shape[:2]) != wanted:
        raise ValueError(f"x is {list(x.shape)}; {wanted[0]} rows and {wanted[1]} columns are needed")
    out = _empty(x, shape[0], shape[1])
    _move(kernels.scatter_slices, out, rows, columns, x, out)
    return out


def _move(
    kernel: _Kernel, whole: Tensor, rows: Tensor | None, columns: Tensor | None, *places: Tensor
) -> None:
    """Copy with a kernel from the first of `places` to the second; one of them is the whole tensor."""
    count, channels, *rest = whole.shape
    inner = math.prod(rest)
    # With channels last, channels are columns and pixels are rows.
    shape = (count * inner, channels, 1) if _channels_last(places[0]) else (count, channels, inner)
    x, out = map(address, places)
    kernel(shape, address(rows), _count(rows), address(columns), _count(columns), x, out)


def _count(numbers: Tensor | None, otherwise: int = _ALL) -> int:
    return otherwise if numbers is None else len(numbers)


def _empty(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.empty((rows, columns, *x.shape[2:]), memory_format=memory_format(x))


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last for images in that format that are not contiguous too; otherwise contiguous."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _channels_last(x: Tensor) -> bool:
    return memory_format(x) is torch.channels_last


def _check(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    if not fits(x, rows):
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)} on {x.device.type}; float32 [R, C, ...] on the CPU is needed, contiguous "
            "or, where all rows are taken, with channels last"
        )
    for name, numbers in (("rows", rows), ("columns", columns)):
        if numbers is not None and (numbers.dtype != torch.int64 or numbers.dim() != 1):
            raise ValueError(f"{name} are {numbers.dtype} {list(numbers.shape)}; int64 [n] is needed")
        if numbers is not None and not (numbers.is_contiguous() and numbers.device.type == "cpu"):
            raise ValueError(f"{name} are not contiguous on the CPU")
