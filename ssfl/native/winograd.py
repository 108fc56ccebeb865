"""3x3 convolutions of images with channels last by Winograd's minimal filtering F(2x2, 3x3).

A direct convolution multiplies 36 times a channel pair for every 2x2 outputs, this one 16 times, so it can be faster
than the best that a library makes of all the products (docs/performance.md). In float32 its errors are as small as
those of direct convolutions; only the filters' gradients are a few times less exact, about 1e-6 of their norm (larger
tiles would save more and lose digits, so they are not taken). Source: Lavin and Gray 2016, arXiv:1509.09308; the
gradients follow from it, since the outputs are linear in images and in filters. A gradient of a gradient goes through
PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ssfl.native.library import address, available, kernels

CHANNELS = 16
"""In and out must be multiples."""
REGISTER_BITS = 512
"""The widest registers to use, where the processor has them."""


def serves(conv: nn.Module) -> bool:
    """Whether the kernels compute a layer: a plain 3x3 convolution with padding 1 and stride 1."""
    if not available() or type(conv) is not nn.Conv2d:
        return False
    plain = (conv.stride, conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    small = conv.kernel_size == (3, 3) and conv.padding in ((1, 1), "same")
    return plain and small and conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0


def fits(x: Tensor, filters: Tensor) -> bool:
    """Whether they serve these images [B, C, H, W] and filters: float32 in this process's memory, channels last."""
    if x.dim() != 4 or x.shape[1] != filters.shape[1] or not x.numel():
        return False
    if not x.is_contiguous(memory_format=torch.channels_last) or not filters.is_contiguous():
        return False
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, filters))


def winograd_conv(x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """conv2d(x, filters, bias, padding=1), channels last.

    x: [B, C, H, W] with channels last; filters: [O, C, 3, 3]; bias: [O]; C and O multiples of 16; all float32 on the
    CPU. Raises ValueError for others.
    """
    out, inner, *kernel = filters.shape
    if kernel != [3, 3] or inner % CHANNELS or out % CHANNELS:
        raise ValueError(
            f"filters are {list(filters.shape)}; [O, C, 3, 3] is needed, O and C multiples of {CHANNELS}"
        )
    if not fits(x, filters):
        raise ValueError(
            f"float32 images [B, {inner}, H, W] with channels last and contiguous filters on the CPU are needed; "
            f"images are {x.dtype} {list(x.shape)}, filters {filters.dtype}"
        )
    if bias is not None and (bias.shape != (out,) or bias.dtype != torch.float32 or not bias.is_contiguous()):
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; contiguous float32 [{out}] is needed")
    apply: Any = _Winograd.apply
    return apply(x, filters, bias)


class _Winograd(torch.autograd.Function):
    """Forward and backward by the kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        images, inner, height, width = x.shape
        shape = (images, inner, len(filters), height, width)
        y = torch.empty((images, len(filters), height, width), memory_format=torch.channels_last)
        _compute(shape, x=x, filters=filters, bias=bias, y=y)
        ctx.shape = shape
        ctx.save_for_backward(x, filters, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, filters, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants these gradients' own
            return _differentiable(ctx.needs_input_grad, (x, filters, bias), gradients[0])
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        wanted = ctx.needs_input_grad
        dx = torch.empty_like(x) if wanted[0] else None
        dfilters = torch.empty_like(filters) if wanted[1] else None
        _compute(ctx.shape, x=x, filters=filters, dy=dy, dx=dx, dfilters=dfilters)
        return dx, dfilters, dy.sum((0, 2, 3)) if wanted[2] else None


def _compute(
    shape: tuple[int, int, int, int, int],
    x: Tensor,
    filters: Tensor,
    bias: Tensor | None = None,
    dy: Tensor | None = None,
    y: Tensor | None = None,
    dx: Tensor | None = None,
    dfilters: Tensor | None = None,
) -> None:
    """Whichever of y, dx and dfilters is there."""
    places = (address(t) for t in (x, filters, bias, dy, y, dx, dfilters))
    kernels.winograd(shape, REGISTER_BITS, torch.get_num_threads(), *places)


def _differentiable(wanted: tuple[bool, ...], inputs: tuple[Tensor | None, ...], dy: Tensor) -> Any:
    """The gradients as a graph, by PyTorch's convolution."""
    x, filters, bias = inputs
    assert x is not None
    assert filters is not None
    y = conv2d(x, filters, bias, padding=1)
    leaves = [t for t, needed in zip(inputs, wanted, strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(y, leaves, dy, create_graph=True))
    return tuple(next(found) if needed else None for needed in wanted)
