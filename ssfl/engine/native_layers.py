"""Layers computed by the kernels of `ssfl.native`: GroupNorm with what follows it, 3x3 convolutions.

Within `native_layers` a module's GroupNorms are computed by one call each, also those of a user's network; networks
that go through `ssfl.models.norms.conv_norm_relu` hand over what follows too, and the bias of the convolution before.
3x3 convolutions of images with channels last are computed by Winograd's minimal filtering where that is wanted. What a
kernel does not serve (float64, another device, half precision, odd sides to pool) goes PyTorch's way, layer by layer.
Results are PyTorch's but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ssfl.native.group_norm import After, fits, layer_by_layer, norm_act
from ssfl.native.winograd import fits as winograd_fits
from ssfl.native.winograd import serves, winograd_conv

SMALL_MAP = 16
"""Pixels: a convolution that makes so few is computed with channels first in the mixed memory format."""


@contextlib.contextmanager
def native_layers(
    module: nn.Module, wanted: bool = True, mixed: bool = False, winograd: bool = False
) -> Iterator[None]:
    """Within: the module's GroupNorm layers go through the kernels, if `wanted`.

    mixed: convolutions to small maps (`conv_norm_relu`'s only) get their input with channels first, whatever it was.
    winograd: 3x3 convolutions by minimal filtering, where images have their channels last.
    """
    module = module if wanted else nn.Identity()
    with replaced(module, _norm, partial(_fused, mixed)), _filtered(module if winograd else nn.Identity()):
        yield


@contextlib.contextmanager
def _filtered(module: nn.Module) -> Iterator[None]:
    """Within: convolutions that `winograd.serves` go through it; one that computes something else already does not."""
    layers = [
        m for m in module.modules() if isinstance(m, nn.Conv2d) and serves(m) and "forward" not in vars(m)
    ]
    try:
        for layer in layers:
            vars(layer)["forward"] = partial(_convolution, layer)
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _convolution(layer: nn.Conv2d, x: Tensor, shift: bool = True) -> Tensor:
    """With the bias, unless the norm after it adds that."""
    weight, bias = layer.weight, layer.bias if shift else None
    if winograd_fits(x, weight) and not torch.is_autocast_enabled("cpu"):
        return winograd_conv(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


@contextlib.contextmanager
def replaced(module: nn.Module, norm: Callable[..., object], fused: Callable[..., object]) -> Iterator[None]:
    """Within: every GroupNorm with weights is `norm(layer, x)`, or `fused(layer, conv, x, residual, pool)`."""
    changed: list[nn.Module] = []
    try:
        for layer in module.modules():
            if type(layer) is nn.GroupNorm and layer.affine:
                # On the instance: the class, and other copies of the network, stay as they are.
                vars(layer).update(forward=partial(norm, layer), fused=partial(fused, layer))
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del vars(layer)["forward"], vars(layer)["fused"]


def _norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    after = After(relu=False)
    compute = norm_act if fits(x, after) else layer_by_layer
    return compute(x, layer.num_groups, layer.weight, layer.bias, layer.eps, after)


def _fused(
    mixed: bool, layer: nn.GroupNorm, conv: nn.Module, x: Tensor, residual: Tensor | None, pool: bool
) -> Tensor:
    if mixed and _makes_a_small_map(conv, x):
        x = x.contiguous()
    shift = bias_apart(conv)
    if shift is None:
        y = conv(x)
    elif "forward" in vars(conv):
        y = conv.forward(x, shift=False)
    else:
        y = conv._conv_forward(x, conv.weight, None)  # type: ignore[operator]
    after = After(pool=pool)
    same = residual is None or (residual.dtype == y.dtype and residual.shape == y.shape)
    compute = norm_act if same and fits(y, after) else layer_by_layer
    return compute(y, layer.num_groups, layer.weight, layer.bias, layer.eps, after, residual, shift)


def _makes_a_small_map(conv: nn.Module, x: Tensor) -> bool:
    if not isinstance(conv, nn.Conv2d) or x.dim() != 4:
        return False
    return x.shape[2] * x.shape[3] <= SMALL_MAP * conv.stride[0] * conv.stride[1]


def bias_apart(conv: nn.Module) -> Tensor | None:
    """The bias of a plain convolution, which the norm may add as well; None where there is none to take apart.

    A library's own gradient of a bias is one more pass over the map's gradient; the norm knows it from its sums.
    """
    if type(conv) is not nn.Conv2d or torch.is_autocast_enabled("cpu"):
        return None
    forward = vars(conv).get("forward")
    ours = isinstance(forward, partial) and forward.func is _convolution
    return conv.bias if ours or forward is None else None
