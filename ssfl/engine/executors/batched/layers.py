"""Layers of K clients with separate weights, as a few large operations that are fast on a CPU.

A network written for one client receives `Stacked` objects instead of tensors. They implement PyTorch's functions for
the layers of small networks, each with one operation over all clients. Images have the shape [B, K * C, H, W], so that
one grouped convolution, one GroupNorm with K times the groups and one pooling compute all clients. Other functions
raise NotStackedError: such a network uses `torch.func.vmap`, which supports more operations, but has copies between
layers, slower kernels and more Python overhead. Gradients are autograd's, so they equal those of each client alone
except for the order of sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssfl.engine.compute.fused_layers import bias_apart, replaced
from ssfl.engine.executors.batched.pixel_pool import max_pool2d
from ssfl.native.group_conv import group_conv, serves
from ssfl.native.group_norm import After, fits, layer_by_layer, norm_act


class NotStackedError(TypeError):
    """Something that `Stacked` cannot do."""


@final
class Stacked:
    """K clients' tensors as one; a network uses it like one client's tensor.

    tensor: weights [K, ...], rows [K, B, F], or images [B, K * C, H, W].
    """

    __slots__ = ("clients", "images", "tensor")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor, clients: int, images: bool = False) -> None:
        self.tensor, self.clients, self.images = tensor, clients, images

    @staticmethod
    def of_inputs(x: Tensor) -> Stacked:
        """From batches of all clients, [B, K, C, H, W] or [B, K, F]."""
        clients = x.shape[1]
        if x.dim() == 5:
            return Stacked(x.flatten(1, 2), clients, images=True)
        return Stacked(x.transpose(0, 1), clients)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule = RULES.get(func)
        if rule is None:
            raise NotStackedError(f"no rule for {getattr(func, '__name__', func)}")
        return rule(*args, **(kwargs or {}))

    @property
    def shape(self) -> torch.Size:
        """One client's."""
        full = self.tensor.shape
        return torch.Size((full[0], full[1] // self.clients, *full[2:])) if self.images else full[1:]

    def size(self, dim: int | None = None) -> Any:
        """One client's."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """One client's."""
        return len(self.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Stacked:
        """Examples as rows of all their features."""
        if start_dim != 1 or end_dim not in (-1, self.dim() - 1):
            raise NotStackedError("only flatten(1)")
        if not self.images:
            return Stacked(self.tensor.flatten(2), self.clients)
        # A copy: in memory the clients of one example come before the next example.
        rows = self.tensor.view(len(self.tensor), self.clients, -1)
        return Stacked(rows.transpose(0, 1), self.clients)

    def reshape(self, *shape: Any) -> Stacked:
        """Examples as rows of all their features: (B, -1)."""
        sizes = shape[0] if len(shape) == 1 else shape
        own = self.shape
        if len(sizes) != 2 or sizes[0] not in (own[0], -1) or sizes[1] not in (-1, math.prod(own[1:])):
            raise NotStackedError("only view(len(x), -1)")
        return self.flatten(1)

    view = reshape

    def relu(self) -> Stacked:
        """max(x, 0)."""
        return Stacked(torch.relu(self.tensor), self.clients, self.images)

    def __add__(self, other: object) -> Stacked:
        if not isinstance(other, Stacked) or other.images != self.images or other.shape != self.shape:
            raise NotStackedError("only sums of equal shapes")
        return Stacked(self.tensor + other.tensor, self.clients, self.images)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise NotStackedError("no truth")

    def __eq__(self, other: object) -> bool:
        raise NotStackedError("no comparison")


def _images(x: Stacked) -> Tensor:
    if not isinstance(x, Stacked) or not x.images:
        raise NotStackedError("images expected")
    return x.tensor.contiguous()


def _weights(weight: Stacked | None) -> Tensor | None:
    """[K * first, ...]; None stays."""
    if weight is None:
        return None
    if not isinstance(weight, Stacked) or weight.images:
        raise NotStackedError("weights of every client expected")
    return weight.tensor.flatten(0, 1)


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _conv2d(
    x: Stacked,
    weight: Stacked,
    bias: Stacked | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Stacked:
    images, weights, biases = _images(x), _weights(weight), _weights(bias)
    assert weights is not None
    out = functional.conv2d(images, weights, None, stride, padding, dilation, groups * x.clients)
    if biases is not None:  # separately: the library's gradient of a bias is slow for many groups
        out = out.add_(biases[:, None, None])
    return Stacked(out, x.clients, images=True)


def _group_norm(
    x: Stacked, num_groups: int, weight: Stacked | None = None, bias: Stacked | None = None, eps: float = 1e-5
) -> Stacked:
    groups = num_groups * x.clients
    out = functional.group_norm(_images(x), groups, _weights(weight), _weights(bias), eps)
    return Stacked(out, x.clients, images=True)


def _max_pool2d(
    x: Stacked,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Stacked:
    if return_indices:
        raise NotStackedError("max_pool2d with indices")
    out = max_pool2d(_images(x), kernel_size, stride, padding, dilation, ceil_mode)
    return Stacked(out, x.clients, images=True)


def _adaptive_avg_pool2d(x: Stacked, output_size: Any) -> Stacked:
    return Stacked(functional.adaptive_avg_pool2d(_images(x), output_size), x.clients, images=True)


def _linear(x: Stacked, weight: Stacked, bias: Stacked | None = None) -> Stacked:
    if not all(isinstance(t, Stacked) and not t.images for t in (x, weight)) or x.dim() != 2:
        raise NotStackedError("rows expected")
    # Weights as the first factor: their gradient then has their memory order, without a copy.
    if bias is None:
        return Stacked(torch.bmm(weight.tensor, x.tensor.mT).mT, x.clients)
    return Stacked(torch.baddbmm(bias.tensor[..., None], weight.tensor, x.tensor.mT).mT, x.clients)


def _relu(x: Stacked, inplace: bool = False) -> Stacked:
    return x.relu()


RULES: Mapping[Any, Callable[..., Stacked]] = {
    functional.conv2d: _conv2d,
    functional.group_norm: _group_norm,
    functional.max_pool2d: _max_pool2d,
    functional.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    functional.linear: _linear,
    functional.relu: _relu,
    torch.relu: _relu,
    torch.flatten: Stacked.flatten,
}
"""PyTorch's function -> the same for `Stacked`, with the same arguments."""


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────────────
@contextlib.contextmanager
def native_stacked_layers(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside the block the module's GroupNorms compute `Stacked` inputs with the kernels, if `wanted`."""
    with replaced(module if wanted else nn.Identity(), _native_norm, _native_fused):
        yield


def _native_norm(layer: nn.GroupNorm, x: Stacked) -> Stacked:
    return _norm_act(layer, x, None, After(relu=False), None)


def _native_fused(
    layer: nn.GroupNorm, conv: nn.Module, x: Stacked, residual: Stacked | None, pool: bool
) -> Stacked:
    shift: Any = bias_apart(conv)
    weight: Any = conv.weight
    y: Any
    if "forward" not in vars(conv) and serves(conv, _images(x)):
        filters = _weights(weight)
        assert filters is not None
        y = Stacked(group_conv(_images(x), filters, x.clients), x.clients, images=True)
        shift = conv.bias
    else:
        y = conv(x) if shift is None else conv._conv_forward(x, weight, None)  # type: ignore[operator]
    return _norm_act(layer, y, residual, After(pool=pool), shift)


def _norm_act(
    layer: Any, x: Stacked, residual: Stacked | None, after: After, shift: Stacked | None
) -> Stacked:
    """Each client's channels form separate groups, so one call computes all clients."""
    images, weight, bias, own = _images(x), _weights(layer.weight), _weights(layer.bias), _weights(shift)
    added = None if residual is None else _images(residual)
    groups = layer.num_groups * x.clients
    assert weight is not None
    assert bias is not None
    compute = norm_act if fits(images, after) else layer_by_layer
    out = compute(images, groups, weight, bias, layer.eps, after, added, own)
    return Stacked(out, x.clients, images=True)
