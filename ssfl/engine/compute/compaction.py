"""Exact compaction: filters and columns without kept weights are not computed.

If the mask keeps no weight of some filters (output channels) or columns (input channels) of a convolution, only the
others are computed, and the output is scattered into zeros. The zeros stay, because they are part of GroupNorm's
statistics and a norm's shift makes them non-zero for the next layer; so the results are those of the complete layer,
except for the order of sums. Weights stay in the flat vector: the small filter is gathered from it at every call, and
its gradient is scattered back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from ssfl.algorithms.base import MASK, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.engine.compute.channel_slices import spread, take
from ssfl.native.winograd import CHANNELS, fits, serves, winograd_conv

LEAST_SAVING = 0.2
"""Minimum share of a layer's products that is saved; below it, gathering costs more than it saves."""


@dataclass(frozen=True)
class Live:
    """The computed part of a layer: indices (int64, ascending) of the filters and columns with a kept weight."""

    filters: Tensor
    columns: Tensor


Plan = Mapping[str, Live]
"""Name of a weight -> its computed part; layers that are complete, or nearly, are not included."""


def live_channels(
    layout: Layout, kept: Tensor, least_saving: float = LEAST_SAVING, uses_winograd: Collection[str] = ()
) -> Plan:
    """The plan for a vector `kept` [T] or [P] whose zeros (False) mark weights that are zero and stay zero.

    uses_winograd: names of weights (`winograd_weights`) whose number of channels is rounded up to a multiple that the
    Winograd kernels support; the added channels have zero weights, so results do not change.
    """
    plan: dict[str, Live] = {}
    for name, weight in layout.views(kept.detach()).items():
        if weight.dim() not in (2, 4):
            continue
        used = weight.ne(0) if weight.dim() == 2 else weight.ne(0).flatten(2).any(2)
        multiple = CHANNELS if name in uses_winograd else 1
        live = Live(_numbers(used.any(1), multiple), _numbers(used.any(0), multiple))
        if len(live.filters) * len(live.columns) <= (1 - least_saving) * used.numel():
            plan[name] = live
    return plan


def winograd_weights(module: nn.Module) -> frozenset[str]:
    """Names of the weights whose layers the Winograd kernels support."""
    return frozenset(f"{name}.weight".lstrip(".") for name, layer in module.named_modules() if serves(layer))


def _numbers(alive: Tensor, multiple: int) -> Tensor:
    """Indices (int64, ascending) of the channels in `alive`, plus others until their number is a multiple."""
    count = int(alive.sum())
    lacking = -count % multiple
    if lacking > len(alive) - count:
        lacking = 0
    dead = (~alive).nonzero().squeeze(1)[:lacking]
    return torch.cat([alive.nonzero().squeeze(1), dead]).sort().values


def training_plan(
    task: ClientTask, theta: Tensor, work: Work, layout: Layout, uses_winograd: Collection[str] = ()
) -> Plan:
    """The plan while `task` trains theta [P]; empty unless compaction leaves the results unchanged.

    Results are unchanged if the network's weights are theta itself, no operation reads the gradient before it is masked
    (before clipping), and theta is zero where the mask is zero.
    """
    if task.mask_stage != "before_clip" or task.transform_gradient is not None or not task.sees_theta:
        return {}
    kept = work[MASK]
    if bool(theta[: layout.trained_size].ne(0).logical_and_(~kept).any()):
        return {}
    return live_channels(layout, kept, uses_winograd=uses_winograd)


@contextlib.contextmanager
def compacted(module: nn.Module, plan: Plan, winograd: bool = False) -> Iterator[None]:
    """Inside the block the module's plain convolutions and linear layers compute only the channels that `plan` keeps.

    winograd: use Winograd convolutions where the kernels support them.
    """
    changed: list[nn.Module] = []
    try:
        for name, layer in module.named_modules():
            live = plan.get(f"{name}.weight" if name else "weight")
            forward = _FORWARDS.get(type(layer))
            if forward is _convolution and winograd and serves(layer):
                forward = partial(_convolution, convolve=_winograd)
            if live is not None and forward is not None and _ordinary(layer):
                # Set on the instance: the class and other copies of the network do not change.
                layer.forward = partial(forward, layer, live)
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _ordinary(layer: nn.Module) -> bool:
    """Whether a layer multiplies every column with every filter and pads with zeros."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return True


def _direct(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def _winograd(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    whole = weight.shape[0] % CHANNELS == weight.shape[1] % CHANNELS == 0
    if whole and fits(x, weight):
        return winograd_conv(x, weight, stride=layer.stride[0])
    return _direct(layer, x, weight)


def _convolution(
    layer: Any, live: Live, x: Tensor, convolve: Callable[[Any, Tensor, Tensor], Tensor] = _direct
) -> Tensor:
    if len(live.filters):
        weight = take(layer.weight, live.filters, live.columns)
        small = convolve(layer, take(x, None, live.columns), weight)
    else:
        nothing = layer.weight[:0].sum()  # zero; keeps the loss differentiable if all layers are empty
        small = x.new_zeros(len(x), 0, *_output_size(layer, x)) + nothing
    out = spread(small, None, live.filters, (len(small), layer.out_channels))
    return out if layer.bias is None else out + layer.bias.to(out.dtype)[:, None, None]


def _linear(layer: Any, live: Live, x: Tensor) -> Tensor:
    examples = x.reshape(-1, x.shape[-1])
    small = linear(take(examples, None, live.columns), take(layer.weight, live.filters, live.columns))
    out = spread(small, None, live.filters, (len(small), layer.out_features))
    out = out.view(*x.shape[:-1], layer.out_features)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


_FORWARDS: Mapping[type, Callable[..., Tensor]] = {nn.Conv2d: _convolution, nn.Linear: _linear}
"""Exact types only: a subclass (a layer that a task replaced) may compute something else."""


def _output_size(layer: nn.Conv2d, x: Tensor) -> list[int]:
    """Height and width of the output, by the convolution's formula ("same" keeps them)."""
    if isinstance(layer.padding, str):
        around = [0, 0] if layer.padding == "valid" else [d * (k - 1) for d, k in _pairs(layer)]
    else:
        around = [2 * p for p in layer.padding]
    sizes = zip(x.shape[2:], around, _pairs(layer), layer.stride, strict=True)
    return [(n + pad - d * (k - 1) - 1) // s + 1 for n, pad, (d, k), s in sizes]


def _pairs(layer: nn.Conv2d) -> list[tuple[int, int]]:
    return list(zip(layer.dilation, layer.kernel_size, strict=True))
