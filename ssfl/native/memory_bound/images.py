"""A minibatch from stored images in one pass: select, crop, mirror, normalise, in the network's memory format.

Equal to the bit to `ssfl.data.preprocess`, which needs several passes: bytes are mapped with a table made there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssfl.native.library import address, available, kernels


def serves(source: Tensor) -> bool:
    """Whether the kernels support `source`: images [N, C, H, W] of bytes or float32 in host memory."""
    known = source.dtype in (torch.uint8, torch.float32) and source.device.type == "cpu"
    return available() and known and source.dim() == 4 and source.is_contiguous() and bool(source.numel())


def from_bytes(
    source: Tensor,
    rows: Tensor,
    table: Tensor,
    channels_last: bool,
    offsets: Tensor | None = None,
    flips: Tensor | None = None,
    padding: int = 0,
) -> Tensor:
    """Images [B, C, H, W] float32: row by row `source [N, C, H, W]` uint8 through `table [C, 256]`.

    offsets int64 [B, 2]: start of each crop in the image padded by `padding` zeros; flips bool [B]: mirrored after
    the crop. Raises IndexError for a row or an offset out of range.
    """
    _check("table", table, torch.float32, (source.shape[1], 256))
    for name, t, dtype, shape in (
        ("offsets", offsets, torch.int64, (len(rows), 2)),
        ("flips", flips, torch.bool, (len(rows),)),
    ):
        if t is not None:
            _check(name, t, dtype, shape)
    return _gathered(source, rows, channels_last, (table, None), offsets, flips, padding)


def from_floats(source: Tensor, rows: Tensor, mean: Tensor, deviation: Tensor, channels_last: bool) -> Tensor:
    """Images [B, C, H, W]: (row - mean) / deviation of `source [N, C, H, W]` float32, both [C]."""
    for name, t in (("mean", mean), ("deviation", deviation)):
        _check(name, t, torch.float32, (source.shape[1],))
    return _gathered(source, rows, channels_last, (mean, deviation), None, None, 0)


def _gathered(
    source: Tensor,
    rows: Tensor,
    channels_last: bool,
    constants: tuple[Tensor, Tensor | None],
    offsets: Tensor | None,
    flips: Tensor | None,
    padding: int,
) -> Tensor:
    _check("rows", rows, torch.int64, (len(rows),))
    images, channels, height, width = source.shape
    form = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((len(rows), channels, height, width), memory_format=form)
    floats = source.dtype == torch.float32
    shape = (len(rows), channels, height, width, padding, channels_last)
    kernels.gather(shape, images, floats, *map(address, (rows, offsets, flips, source, *constants, out)))
    return out


def _check(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if t.dtype != dtype or tuple(t.shape) != shape or not t.is_contiguous() or t.device.type != "cpu":
        raise ValueError(
            f"{name} is {t.dtype} {list(t.shape)}; contiguous {dtype} {list(shape)} on the CPU is needed"
        )
