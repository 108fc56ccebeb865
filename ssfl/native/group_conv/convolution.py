"""3x3 convolutions of many small groups: the filters of K clients on their channels, in one call.

Libraries are slow for few channels per group. Second-order gradients use PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ssfl.native.library import available, kernels

MOST_CHANNELS_IN = 16
"""Maximum number of channels per group; with more, the library is faster (docs/performance.md)."""


def serves(conv: nn.Module, x: Tensor) -> bool:
    """Whether the kernels support a layer's convolution as one group of a convolution of x [B, groups * C, H, W]."""
    if not available() or type(conv) is not nn.Conv2d or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    small = conv.kernel_size == (3, 3) and conv.padding in ((1, 1), "same")
    return plain and small and conv.in_channels <= MOST_CHANNELS_IN and x.is_contiguous() and bool(x.numel())


def group_conv(x: Tensor, filters: Tensor, groups: int) -> Tensor:
    """conv2d(x, filters, padding=1, groups=groups): x [B, groups * in, H, W], filters [groups * out, in, 3, 3]."""
    channels, (out, inner, *kernel) = x.shape[1], filters.shape
    if kernel != [3, 3] or channels != groups * inner or out % groups:
        raise ValueError(f"filters {list(filters.shape)} do not fit {channels} channels in {groups} groups")
    if not all(
        t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in (x, filters)
    ):
        raise ValueError("contiguous float32 images and filters on the CPU are needed")
    apply: Any = _GroupConv.apply
    return apply(x, filters, groups)


class _GroupConv(torch.autograd.Function):
    """Forward and backward with the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, groups: int) -> Tensor:
        images, _, height, width = x.shape
        out, inner, _, _ = filters.shape
        ctx.shape = (images, groups, inner, out // groups, height, width)
        y = torch.empty((images, out, height, width))
        kernels.conv_forward(ctx.shape, x.data_ptr(), filters.data_ptr(), y.data_ptr())
        ctx.save_for_backward(x, filters)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, filters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        if torch.is_grad_enabled():  # second-order gradients are requested
            leaves = [x, filters] if wanted else [filters]
            y = conv2d(x, filters, padding=1, groups=ctx.shape[1])
            found = torch.autograd.grad(y, leaves, gradients[0], create_graph=True)
            return found[0] if wanted else None, found[-1], None
        dy = gradients[0].contiguous()
        dx = torch.empty_like(x) if wanted else None
        dfilters = torch.empty_like(filters)
        place = 0 if dx is None else dx.data_ptr()
        kernels.conv_backward(
            ctx.shape, dy.data_ptr(), x.data_ptr(), filters.data_ptr(), place, dfilters.data_ptr()
        )
        return dx, dfilters, None
