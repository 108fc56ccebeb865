"""Max-pooling of many small images on a CPU: PyTorch's kernel over pixels, where it is several times faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def max_pool2d(
    x: Tensor, kernel_size: Any, stride: Any, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """`torch.nn.functional.max_pool2d` of x [B, C, H, W], contiguous; values and gradients are bitwise equal."""
    window = (kernel_size, stride, padding, dilation, ceil_mode)
    out: Tensor = _PixelPool.apply(x, window)  # type: ignore[no-untyped-call]
    return out


class _PixelPool(torch.autograd.Function):
    """Max-pooling with all B * C channels of a pixel adjacent in memory.

    Transposes are of matrices, because PyTorch copies only these in blocks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        b, c, h, w = x.shape
        pixels = x.view(b * c, h * w).t().contiguous().view(1, h, w, b * c).permute(0, 3, 1, 2)
        out, index = functional.max_pool2d_with_indices(pixels, *window)
        shape = (b, c, *out.shape[2:])
        ctx.window = window
        # Transpose the smallest type that can store a pixel index.
        small = index.to(torch.uint8 if h * w <= 256 else torch.int32)
        ctx.save_for_backward(x, _transposed(small).to(torch.int64).view(shape))
        return _transposed(out).view(shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, index = ctx.saved_tensors
        size, stride, padding, dilation = (_pair(n) for n in ctx.window[:4])
        back = torch.ops.aten.max_pool2d_with_indices_backward
        rest = (size, stride, padding, dilation, ctx.window[4], index)
        return back(gradients[0].contiguous(), x, *rest), None


def _transposed(pooled: Tensor) -> Tensor:
    """[1, N, h, w] in the memory of [h * w, N] -> [N, h * w], contiguous."""
    return pooled.permute(0, 2, 3, 1).flatten(0, 2).t().contiguous()


def _pair(number: Any) -> list[int]:
    """PyTorch's size arguments as two numbers; an empty list for the default stride."""
    if number is None:
        return []
    return [number, number] if isinstance(number, int) else list(number)
