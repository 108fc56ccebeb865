"""Layers computed by the kernels of `ssfl.native`: GroupNorm with the operations after it, 3x3 convolutions.

Within `native_layers` each GroupNorm of a module is one call, also in custom networks. For networks that use
`ssfl.models.norms.conv_norm_relu` the call includes the operations after the norm and the bias of the convolution
before it. 3x3 convolutions of images with channels last use Winograd if requested. Layers that the kernels do not
support (float64, another device, half precision, odd sides to pool) are computed by PyTorch. Results equal PyTorch's
except for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ssfl.core.activation_pruning import SparseGradientConvolution, SparseGradientLinear
from ssfl.native.group_norm import After, fits, layer_by_layer, norm_act
from ssfl.native.winograd import Place, serves, serves_shape, winograd_conv
from ssfl.native.winograd import fits as winograd_fits

Places = Mapping[Tensor, Place]
"""Where kernels may write the gradients of parameters, while the loss is differentiated with respect to these."""
SMALL_MAP = 16
"""Pixels: a convolution whose output has at most this many uses channels first in the mixed memory format."""


@contextlib.contextmanager
def native_layers(
    module: nn.Module,
    wanted: bool = True,
    mixed: bool = False,
    winograd: bool = False,
    places: Places | None = None,
) -> Iterator[None]:
    """Inside the block the module's GroupNorm layers use the kernels, if `wanted`.

    mixed: convolutions to small maps (only those in `conv_norm_relu`) get their input with channels first.
    winograd: 3x3 convolutions of images with channels last use Winograd.
    places: where these convolutions write the gradients of their filters.
    """
    module = module if wanted else nn.Identity()
    with (
        _alone(module),
        replaced(module, _norm, partial(_fused, mixed)),
        _winograd_layers(module if winograd else nn.Identity(), places or {}),
    ):
        yield


@contextlib.contextmanager
def _alone(module: nn.Module) -> Iterator[None]:
    """Inside the block, layers that prune activations are not called under vmap and may use the faster form."""
    layers = [m for m in module.modules() if isinstance(m, (SparseGradientConvolution, SparseGradientLinear))]
    for layer in layers:
        layer.alone = True
    try:
        yield
    finally:
        for layer in layers:
            layer.alone = False


@contextlib.contextmanager
def _winograd_layers(module: nn.Module, places: Places) -> Iterator[None]:
    """Inside the block convolutions for which `winograd.serves` use it, unless their forward is already replaced."""
    changed: list[tuple[nn.Module, str]] = []
    try:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and serves(layer) and "forward" not in vars(layer):
                place = places.get(layer.weight)
                vars(layer)["forward"] = partial(_convolution, layer, place=place)
                changed.append((layer, "forward"))
            elif isinstance(layer, SparseGradientConvolution) and _serves_sparse(layer):
                vars(layer)["convolve"] = partial(_sparse_convolution, layer)
                changed.append((layer, "convolve"))
        yield
    finally:
        for layer, name in changed:
            del vars(layer)[name]


def _serves_sparse(layer: SparseGradientConvolution) -> bool:
    walk = layer.geometry
    return serves_shape(layer.weight.shape, walk.stride, walk.padding, walk.dilation, walk.groups)


def _sparse_convolution(layer: SparseGradientConvolution, x: Tensor, cut: Tensor | None = None) -> Tensor:
    """SparsyFed's convolution: the kernel of the weight gradient skips the pruned activations."""
    if winograd_fits(x, layer.weight) and not torch.is_autocast_enabled("cpu"):
        least = 0.0 if cut is None else max(float(cut), 0.0)
        return winograd_conv(x, layer.weight, layer.bias, stride=layer.geometry.stride[0], least=least)
    return SparseGradientConvolution.convolve(layer, x, cut)


def _convolution(layer: nn.Conv2d, x: Tensor, shift: bool = True, place: Place | None = None) -> Tensor:
    """The convolution, with its bias unless the norm after it adds the bias."""
    weight, bias = layer.weight, layer.bias if shift else None
    if winograd_fits(x, weight) and not torch.is_autocast_enabled("cpu"):
        return winograd_conv(x, weight, bias, stride=layer.stride[0], place=place)
    return layer._conv_forward(x, weight, bias)


@contextlib.contextmanager
def replaced(module: nn.Module, norm: Callable[..., object], fused: Callable[..., object]) -> Iterator[None]:
    """Inside the block GroupNorms with weights compute `norm(layer, x)`, or `fused(layer, conv, x, residual, pool)`."""
    changed: list[nn.Module] = []
    try:
        for layer in module.modules():
            if type(layer) is nn.GroupNorm and layer.affine:
                # Set on the instance: the class and other copies of the network do not change.
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
    """The bias of a plain convolution, which the norm can add instead; None if the bias cannot be separated.

    A library computes the gradient of a bias in one more pass over the map's gradient; the norm has it from its sums.
    """
    if type(conv) is not nn.Conv2d or torch.is_autocast_enabled("cpu"):
        return None
    forward = vars(conv).get("forward")
    ours = isinstance(forward, partial) and forward.func is _convolution
    return conv.bias if ours or forward is None else None
