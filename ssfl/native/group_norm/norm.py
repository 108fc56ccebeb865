"""GroupNorm fused with the layers that follow it: the same function as PyTorch's layers, in two passes over memory.

Each of PyTorch's layers reads and writes every activation, and its GroupNorm is slow with channels last. Here one call
computes the norm, an added residual, 2x2 max-pooling and ReLU. The backward pass needs the layer's input and, with
pooling, one byte per output. Second-order gradients use PyTorch's layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, max_pool2d, relu

from ssfl.native.library import address, available, kernels

MOST_CHANNELS = 4096
MOST_WINDOWS = 4096
"""Maximum number of pooling windows of a map, with channels first."""
_LANES = 16


@dataclass(frozen=True)
class After:
    """The layers after the norm."""

    pool: bool = False
    """2x2 max-pooling before ReLU (the order does not change the result). Not with a residual, nor without ReLU."""
    relu: bool = True


def fits(x: Tensor, after: After) -> bool:
    """Whether the kernel supports images x [B, C, H, W]: float32 in host memory, dense, even sides for pooling."""
    if after.pool and not after.relu:  # its pooling includes ReLU
        return False
    if not available() or x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != 4:
        return False
    _, channels, height, width = x.shape
    if channels > MOST_CHANNELS or not x.numel() or (after.pool and (height % 2 or width % 2)):
        return False
    if x.is_contiguous():
        return not after.pool or height * width <= 4 * MOST_WINDOWS
    return channels % _LANES == 0 and x.is_contiguous(memory_format=torch.channels_last)


def norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    after: After,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """relu(max_pool2d(group_norm(x + shift), 2) + residual), with the parts that `after` selects, if `fits(x, after)`.

    x, residual: [B, C, H, W]; weight, bias, shift (the bias of the convolution before, or None): [C] float32.
    """
    for name, t in (("weight", weight), ("bias", bias), ("shift", shift)):
        if t is not None and (t.shape != x.shape[1:2] or t.dtype != torch.float32 or not t.is_contiguous()):
            raise ValueError(
                f"{name} is {t.dtype} {list(t.shape)}; contiguous float32 [{x.shape[1]}] is needed"
            )
    if residual is not None:
        if after.pool:
            raise ValueError("a residual is added to a whole map, not to a pooled one")
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}, x {list(x.shape)}")
        residual = residual.contiguous(memory_format=_memory_format(x))
    apply: Any = _NormAct.apply
    return apply(x, weight, bias, shift, residual, groups, eps, after)


def layer_by_layer(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    after: After,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`norm_act` with PyTorch's layers, for any x."""
    y = x if shift is None else x + shift.to(x.dtype)[:, None, None]
    y = group_norm(y, groups, weight, bias, eps)
    y = max_pool2d(y, 2) if after.pool else y
    y = y if residual is None else y + residual
    return relu(y) if after.relu else y


class _NormAct(torch.autograd.Function):
    """Forward and backward with the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        residual: Tensor | None,
        groups: int,
        eps: float,
        after: After,
    ) -> Tensor:
        images, channels, height, width = x.shape
        form = _memory_format(x)
        last = form is torch.channels_last
        shape = (images, channels, height, width, groups, last, after.pool, after.relu, eps)
        side = 2 if after.pool else 1
        y = torch.empty((images, channels, height // side, width // side), memory_format=form)
        chosen = torch.empty_like(y, dtype=torch.uint8) if after.pool else None
        statistics = torch.empty((images, 2 * groups + channels))
        kernels.norm_forward(
            shape,
            torch.get_num_threads(),
            x.data_ptr(),
            address(shift),
            address(residual),
            weight.data_ptr(),
            bias.data_ptr(),
            y.data_ptr(),
            address(chosen),
            statistics.data_ptr(),
        )
        ctx.shape, ctx.form, ctx.rest = shape, form, (groups, eps, after)
        seen = y if after.relu and not after.pool else None
        ctx.save_for_backward(x, weight, bias, shift, residual, seen, chosen, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, shift, residual, y, chosen, statistics = ctx.saved_tensors
        if torch.is_grad_enabled():  # second-order gradients are requested
            return _differentiable(ctx.rest, (x, weight, bias, shift, residual), gradients[0])
        dy = gradients[0].contiguous(memory_format=ctx.form)
        dx = torch.empty_like(x)
        dresidual = None if residual is None else torch.empty_like(dy)
        parameters = torch.empty((3, len(weight)))  # one allocation; autograd keeps the views
        kernels.norm_backward(
            ctx.shape,
            torch.get_num_threads(),
            dy.data_ptr(),
            x.data_ptr(),
            address(y),
            address(chosen),
            address(shift),
            weight.data_ptr(),
            statistics.data_ptr(),
            dx.data_ptr(),
            address(dresidual),
            parameters.data_ptr(),
        )
        dweight, dbias, dshift = parameters.unbind()
        return dx, dweight, dbias, None if shift is None else dshift, dresidual, None, None, None


def _differentiable(rest: tuple[int, float, After], inputs: tuple[Tensor | None, ...], dy: Tensor) -> Any:
    """The gradients with PyTorch's layers, differentiable."""
    groups, eps, after = rest
    x, weight, bias, shift, residual = inputs
    assert x is not None
    assert weight is not None
    assert bias is not None
    y = layer_by_layer(x, groups, weight, bias, eps, after, residual, shift)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, dy, create_graph=True), strict=True))
    return *(found.get(id(t)) for t in inputs), None, None, None


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
