"""3x3 convolutions of images with channels last by Winograd's *minimal filtering*.

For every 4x4 outputs of a channel pair, a direct convolution needs 144 multiplications and this one 36 with stride 1
(64 for maps that tiles of 4x4 cover badly) and 100 with stride 2 (ssfl/native/winograd/schemes.h), so it can be faster
than any direct convolution (docs/performance.md). In float32 its errors are below 1e-6 of the norm, at most about
twice those of direct convolutions, for the filters' gradients four times. Source: Lavin and Gray
2016, arXiv:1509.09308; the gradients follow from it, because outputs are linear in images and in filters. Second-order
gradients use PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssfl.native.library import address, available, kernels

if TYPE_CHECKING:
    from ssfl.native.kernels import WinogradShape

CHANNELS = 16
"""Input and output channels must be multiples of this."""
STRIDES = (1, 2)
Place = Callable[[], "Tensor | None"]
"""Gives the memory that filters' gradients are written to, or None if they need memory of their own."""


def serves(conv: nn.Module) -> bool:
    """Whether the kernels support a layer: a plain 3x3 convolution with padding 1 and stride 1 or 2."""
    if not available() or type(conv) is not nn.Conv2d:
        return False
    padding = conv.padding if isinstance(conv.padding, tuple) else _padding(conv.padding)
    zeros = conv.padding_mode == "zeros"
    return zeros and serves_shape(conv.weight.shape, conv.stride, padding, conv.dilation, conv.groups)


def _padding(name: str) -> tuple[int, ...]:
    """Padding of a 3x3 convolution with "same" or "valid"."""
    return (1, 1) if name == "same" else (0, 0)


def serves_shape(
    filters: Sequence[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Whether the kernels support a zero-padded convolution with filters [O, C, ...] and these arguments."""
    if not available() or len(filters) != 4:
        return False
    strides = [(s, s) for s in STRIDES]
    plain = stride in strides and (padding, dilation, groups) == ((1, 1), (1, 1), 1)
    out, inner, *kernel = filters
    return plain and kernel == [3, 3] and inner % CHANNELS == out % CHANNELS == 0


def fits(x: Tensor, filters: Tensor) -> bool:
    """Whether the kernels support these images [B, C, H, W] and filters: float32 in host memory, channels last."""
    if x.dim() != 4 or x.shape[1] != filters.shape[1] or not x.numel():
        return False
    if not x.is_contiguous(memory_format=torch.channels_last) or not filters.is_contiguous():
        return False
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, filters))


def winograd_conv(
    x: Tensor,
    filters: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    least: float = 0.0,
    place: Place | None = None,
) -> Tensor:
    """conv2d(x, filters, bias, stride, padding=1), channels last.

    x: [B, C, H, W] with channels last; filters: [O, C, 3, 3]; bias: [O]; C and O multiples of 16; all float32 on the
    CPU; stride: 1 or 2. Raises ValueError otherwise.

    least: in the filters' gradient only, entries of x with smaller magnitude are treated as zeros.
    place: called in the backward pass for the memory of the filters' gradient; new memory without it.
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
    if stride not in STRIDES:
        raise ValueError(f"stride is {stride}; 1 or 2 is needed")
    apply: Any = _Winograd.apply
    return apply(x, filters, bias, stride, least, place)


class _Winograd(torch.autograd.Function):
    """Forward and backward with the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        filters: Tensor,
        bias: Tensor | None,
        stride: int,
        least: float,
        place: Place | None,
    ) -> Tensor:
        images, inner, height, width = x.shape
        shape = (images, inner, len(filters), height, width, stride)
        down, across = (math.ceil(side / stride) for side in (height, width))
        y = torch.empty((images, len(filters), down, across), memory_format=torch.channels_last)
        _compute(shape, x=x, filters=filters, bias=bias, y=y)
        ctx.shape, ctx.least, ctx.place = shape, least, place
        ctx.save_for_backward(x, filters, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, filters, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # second-order gradients are requested
            wanted, stride = ctx.needs_input_grad[:3], ctx.shape[-1]
            found = _differentiable(wanted, (x, filters, bias), stride, ctx.least, gradients[0])
            return *found, None, None, None
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        wanted = ctx.needs_input_grad
        dx = torch.empty_like(x) if wanted[0] else None
        dfilters = _memory_for(ctx.place, filters) if wanted[1] else None
        _compute(ctx.shape, x=x, filters=filters, dy=dy, dx=dx, dfilters=dfilters, least=ctx.least)
        return dx, dfilters, dy.sum((0, 2, 3)) if wanted[2] else None, None, None, None


def _memory_for(place: Place | None, filters: Tensor) -> Tensor:
    memory = None if place is None else place()
    return torch.empty_like(filters) if memory is None else memory


def _compute(
    shape: WinogradShape,
    x: Tensor,
    filters: Tensor,
    bias: Tensor | None = None,
    dy: Tensor | None = None,
    y: Tensor | None = None,
    dx: Tensor | None = None,
    dfilters: Tensor | None = None,
    least: float = 0.0,
) -> None:
    """Compute those of y, dx and dfilters that are not None."""
    places = (address(t) for t in (x, filters, bias, dy, y, dx, dfilters))
    kernels.winograd(shape, torch.get_num_threads(), least, *places)


def _differentiable(
    wanted: tuple[bool, ...], inputs: tuple[Tensor | None, ...], stride: int, least: float, dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients with PyTorch's convolution, differentiable."""
    x, filters, bias = inputs
    assert x is not None
    assert filters is not None
    kept = torch.where(x.abs() >= least, x, 0.0) if least > 0 else x
    rest = (None if bias is None else [len(bias)], [stride, stride], [1, 1], [1, 1], False, [0, 0], 1)
    convolution_backward = torch.ops.aten.convolution_backward
    # The images' gradient does not depend on their values.
    return tuple(convolution_backward(dy, kept, filters, *rest, list(wanted)))
