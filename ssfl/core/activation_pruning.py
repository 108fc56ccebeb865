"""Layers that prune activations in the weight gradient only (SparsyFed; earlier SWAT, ZeroFL).

Output and input gradient use the dense input x; the weight gradient uses x with small entries set to zero, at the
density of the layer's weight. An implementation then needs to keep only the sparse copy of x.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, hardshrink, linear

UNSET = -1.0
"""A threshold that is not set; it keeps everything."""
LEAST_KEPT = 0.01
"""Minimum share of activations kept (as in one copy of the authors' code; the other has 1e-7)."""
THRESHOLD = "threshold"
"""Name of a convolution's threshold: a scalar that `FlatNet.logits` may replace and that training sets in place."""


def activation_cut(x: Tensor, weight: Tensor) -> Tensor:
    """The threshold (a scalar) that keeps the same share of entries of x as the weight's share of non-zeros.

    It is the ceil(share * n)-th largest of n magnitudes, share at least `LEAST_KEPT`; ties are kept. UNSET for a dense
    weight.
    """
    zeros = weight.numel() - _nonzeros(weight)
    if not zeros:
        return x.new_full((), UNSET)
    # In integers, so that the share is not rounded.
    share = -(-(weight.numel() - zeros) * x.numel() // weight.numel())
    keep = max(share, math.ceil(LEAST_KEPT * x.numel()))
    return _kth_smallest(x.abs().flatten(), x.numel() - keep)


def _nonzeros(weight: Tensor) -> int:
    """Number of non-zero entries; NumPy counts bytes thirty times faster than PyTorch counts floats."""
    if weight.device.type != "cpu":
        return int(weight.count_nonzero())
    return int(np.count_nonzero(weight.bool().numpy()))


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    """The entry at position k in ascending order, a scalar; NumPy's selection is several times faster."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.kthvalue(k + 1).values
    return torch.from_numpy(np.partition(values.numpy(), k)[k : k + 1])[0]


class _Cut(torch.autograd.Function):
    """`activation_cut`, or `known` if that is set; one client at a time under vmap, because it branches on values."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, known: Tensor) -> Tensor:
        return known.clone() if float(known) != UNSET else activation_cut(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        rows = [
            tuple(t if d is None else t.select(d, k) for t, d in zip(inputs, in_dims, strict=True))
            for k in range(info.batch_size)
        ]
        return torch.stack([_Cut.apply(*row) for row in rows]), 0  # type: ignore[no-untyped-call]


def kept_activations(x: Tensor, cut: Tensor) -> Tensor:
    """x where |x| >= cut, else 0; not differentiable."""
    with torch.no_grad():
        return torch.where(x.abs() >= cut, x, 0.0)


def kept_alone(x: Tensor, cut: Tensor) -> Tensor:
    """`kept_activations` for one client in one pass; x itself if the threshold keeps everything."""
    if float(cut) <= 0:
        return x.detach()
    with torch.no_grad():
        return hardshrink(x, float(torch.nextafter(cut, torch.zeros_like(cut))))


@dataclass(frozen=True)
class Geometry:
    """The arguments of a convolution, one entry per dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The ordinary convolution, under autocast."""
        convolution: Any = (conv1d, conv2d, conv3d)[len(self.stride) - 1]
        return convolution(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def aten(self) -> tuple[Any, ...]:
        """Arguments of aten::convolution_backward from the stride on."""
        nothing = [0] * len(self.stride)
        return list(self.stride), list(self.padding), list(self.dilation), False, nothing, self.groups


class _SparseGradientConvolution(torch.autograd.Function):
    """A convolution of x whose weight gradient uses `kept` instead of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kept: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return geometry.convolve(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kept, weight, bias, ctx.geometry = inputs
        ctx.bias_shape = None if bias is None else list(bias.shape)
        ctx.save_for_backward(kept, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        upstream = gradients[0]
        # The input gradient does not depend on the input's values, so one call gives all three.
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.bias_shape is not None]
        alike = (upstream, kept.to(upstream.dtype), weight.to(upstream.dtype))
        back = torch.ops.aten.convolution_backward(*alike, ctx.bias_shape, *ctx.geometry.aten, wanted)
        to_x, to_weight, to_bias = (None if g is None else g.to(weight.dtype) for g in back)
        return to_x, None, to_weight, to_bias, None


class _SparseGradientLinear(torch.autograd.Function):
    """A linear map of x [..., in] whose weight gradient uses `kept` instead of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kept: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kept, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(kept, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        upstream = gradients[0].to(weight.dtype)
        rows = upstream.flatten(0, -2)
        to_weight = rows.mT @ kept.to(weight.dtype).flatten(0, -2)
        return upstream @ weight, None, to_weight, rows.sum(0) if ctx.has_bias else None


class _ConvolutionAlone(torch.autograd.Function):
    """`_SparseGradientConvolution` without vmap support; with it, PyTorch inspects the signature at every call."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kept: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        y = geometry.convolve(x, weight, bias)
        _SparseGradientConvolution.setup_context(ctx, (x, kept, weight, bias, geometry), y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _SparseGradientConvolution.backward(ctx, *gradients)


class _LinearAlone(torch.autograd.Function):
    """`_SparseGradientLinear` without vmap support."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = linear(x, weight, bias)
        _SparseGradientLinear.setup_context(ctx, (x, kept, weight, bias), y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _SparseGradientLinear.backward(ctx, *gradients)


@final
class SparseGradientConvolution(nn.Module):
    """Replaces nn.Conv1d/2d/3d: same parameters, same output.

    alone: set by an executor that computes one client at a time without vmap; same results, faster.

    The first training batch with zeros in the weight sets `threshold`, which later batches reuse (the authors' rule).
    The caller passes a threshold of UNSET at the start of a fit, through `FlatNet.logits`.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.geometry = Geometry(layer.stride, _padding(layer), layer.dilation, layer.groups)
        self.threshold = layer.weight.detach().new_full((), UNSET)
        self.alone = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.convolve(x)
        if self.alone:
            with torch.no_grad():
                if float(self.threshold) == UNSET:
                    self.threshold.copy_(activation_cut(x, self.weight))
            return self.convolve(x, self.threshold)
        with torch.no_grad():
            self.threshold.copy_(_Cut.apply(x, self.weight, self.threshold))  # type: ignore[no-untyped-call]
        return self.convolve(x, self.threshold)

    def convolve(self, x: Tensor, cut: Tensor | None = None) -> Tensor:
        """The convolution; its weight gradient uses the entries of x with magnitude at least `cut` (None: all)."""
        if cut is None:
            return self.geometry.convolve(x, self.weight, self.bias)
        if self.alone:
            kept = kept_alone(x, cut)
            return _ConvolutionAlone.apply(x, kept, self.weight, self.bias, self.geometry)  # type: ignore[no-untyped-call]
        kept = kept_activations(x, cut)
        return _SparseGradientConvolution.apply(x, kept, self.weight, self.bias, self.geometry)  # type: ignore[no-untyped-call]


@final
class SparseGradientLinear(nn.Module):
    """Replaces nn.Linear: same parameters, same output; a new threshold for every batch (the authors' rule).

    alone: as in `SparseGradientConvolution`.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.alone = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return linear(x, self.weight, self.bias)
        if self.alone:
            with torch.no_grad():
                kept = kept_alone(x, activation_cut(x, self.weight))
            return _LinearAlone.apply(x, kept, self.weight, self.bias)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            cut = _Cut.apply(x, self.weight, x.new_full((), UNSET))  # type: ignore[no-untyped-call]
        kept = kept_activations(x, cut)
        return _SparseGradientLinear.apply(x, kept, self.weight, self.bias)  # type: ignore[no-untyped-call]


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Zeros added at both sides of each dimension. Raises ValueError for other paddings."""
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode={layer.padding_mode!r}")
    if isinstance(layer.padding, tuple):
        return layer.padding
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise ValueError("padding='same' with an even kernel")
    return tuple(span // 2 for span in spans)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted name matches one of the shell patterns ("*.shortcut.*")."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def with_pruned_activations(module: nn.Module, plain_layers: tuple[str, ...] = ()) -> nn.Module:
    """A copy of a network with its convolutions and linear layers replaced, except those that match `plain_layers`.

    Names, shapes and outputs do not change. Transposed convolutions and layers whose weight is computed are not
    replaced. Raises ValueError, with the layer's name, for padding that is not zero padding or differs between the two
    sides.
    """
    out = copy.deepcopy(module)
    made: dict[int, nn.Module] = {}
    for name, layer in list(out.named_modules(remove_duplicate=False)):
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) or matches(name, plain_layers):
            continue
        if layer._parameters.get("weight") is None:  # it is computed (weight_norm)
            continue
        if id(layer) not in made:
            made[id(layer)] = _replaced(name, layer).train(layer.training)
        if not name:
            return made[id(layer)]
        parent, _, leaf = name.rpartition(".")
        setattr(out.get_submodule(parent), leaf, made[id(layer)])
    return out


def _replaced(name: str, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return SparseGradientLinear(layer)
    try:
        return SparseGradientConvolution(layer)
    except ValueError as error:
        raise ValueError(
            f"layer {name}: activations cannot be pruned with {error}; use zero padding that is the same at both "
            "sides, leave the layer plain (plain_layers), or train without pruned activations (prune_activations)"
        ) from None
