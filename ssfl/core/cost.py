"""Arithmetic cost of a (masked) network: FLOPs and bytes, by closed form.

The rule is the counter behind the published figures (of SSFL and of DisPFL before it): a convolution costs
2 · nnz(W) · H_out · W_out, a linear layer 2 · nnz(W), plus one addition per output where there is a bias;
norms, activations and pools are ignored; a training step costs three forward passes. The published counter
assumes 32×32 inputs; here the output sizes are those of the network's own input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """What one example costs in one convolution or linear layer.

    `name` is the name of the layer's weight as in `named_parameters` ("layer1.0.conv1.weight");
    `multiplications_per_weight` how often one weight is used (the output positions of a convolution, 1 for a
    linear layer on flat input, 0 for a layer that the forward pass does not reach); `bias_flops` the
    additions of the bias; `weights` the number of weights when dense.
    """

    name: str
    multiplications_per_weight: int
    bias_flops: int
    weights: int


def layer_costs(module: nn.Module, input_shape: Sequence[int]) -> tuple[LayerCost, ...]:
    """Cost per convolution and linear layer, found by one forward pass of one example of zeros.

    `input_shape` is one example without batch, (C, H, W) or (F,). Layers are in `named_parameters` order. A
    layer called several times, or a weight shared by several layers, is counted once per call. Weights used
    outside nn.Conv*/nn.Linear modules (torch.nn.functional calls, attention's packed projections) are not
    seen. The module, its training flags and the global random state are left as they were.
    """
    calls: dict[int, list[int]] = {}  # id of a weight → [multiplications per weight, bias additions]
    handles = []
    for layer in module.modules():
        if isinstance(layer, COUNTED):
            calls.setdefault(id(layer.weight), [0, 0])
            handles.append(layer.register_forward_hook(_counting_hook(calls)))
    try:
        forward_zeros(module, input_shape, examples=1)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        LayerCost(name, calls[id(parameter)][0], calls[id(parameter)][1], parameter.numel())
        for name, parameter in module.named_parameters()
        if id(parameter) in calls
    )


def _counting_hook(calls: dict[int, list[int]]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, COUNTED)
        entry = calls[id(layer.weight)]
        # A transposed convolution spreads each input position over the kernel, so there the input counts.
        entry[0] += _positions(layer, inputs[0] if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else output)
        if layer.bias is not None:
            entry[1] += output.numel()

    return count


def _positions(layer: nn.Module, x: Tensor) -> int:
    """At how many positions of `x` (one example) the layer's weights are used."""
    if isinstance(layer, nn.Linear):
        return math.prod(x.shape[:-1])
    spatial_dims = len(layer.kernel_size)  # type: ignore[arg-type]
    return math.prod(x.shape[-spatial_dims:])


def forward_zeros(module: nn.Module, input_shape: Sequence[int], examples: int) -> Tensor:
    """Output of one evaluation-mode pass over `examples` examples of zeros, leaving the module as it was.

    Zeros are of the dtype and on the device of the module's first parameter. Training flags are restored one
    by one (a user's network may keep some layers in evaluation mode), and random draws in the forward pass do
    not move the global generators.
    """
    like = next(module.parameters(), torch.empty(0))
    zeros = torch.zeros(examples, *input_shape, dtype=like.dtype, device=like.device)
    training = [(layer, layer.training) for layer in module.modules()]
    devices = [like.device] if like.device.type == "cuda" else []
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            output: Tensor = module(zeros)
            return output
    finally:
        for layer, flag in training:
            layer.training = flag


def forward_flops(costs: Sequence[LayerCost], kept: Mapping[str, int] | None = None) -> int:
    """FLOPs of one example's forward pass; `kept` gives the non-zero weights of a layer by weight name.

    Layers that `kept` leaves out are dense; None means all dense. Biases are never pruned. Raises ValueError
    for a name that is no layer, or for a count outside 0 to the layer's number of weights.
    """
    kept = {} if kept is None else kept
    _check_kept(costs, kept)
    return sum(
        2 * cost.multiplications_per_weight * kept.get(cost.name, cost.weights) + cost.bias_flops
        for cost in costs
    )


def _check_kept(costs: Sequence[LayerCost], kept: Mapping[str, int]) -> None:
    weights = {cost.name: cost.weights for cost in costs}
    for name, count in kept.items():
        if name not in weights:
            raise ValueError(
                f"kept names {name!r}, no weight of a convolution or linear layer; "
                f"allowed: {', '.join(weights)}"
            )
        if not 0 <= count <= weights[name]:
            raise ValueError(f"kept[{name!r}] is {count}; allowed: 0 to {weights[name]}")


def training_flops(forward: int, examples: int, epochs: int) -> int:
    """FLOPs of training on `examples` examples for `epochs` epochs: backward costs two forward passes."""
    return 3 * forward * examples * epochs


def dense_model_bytes(coordinates: int, bytes_per_value: int = 4) -> int:
    """Bytes of one dense model of P coordinates in one direction; float32 unless told."""
    return coordinates * bytes_per_value
