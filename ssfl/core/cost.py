"""FLOPs of a (masked) network, in closed form.

The rule is that of the published figures of SSFL and DisPFL: a convolution costs
2 · nnz(W) · H_out · W_out, a linear layer 2 · nnz(W), plus one addition per output if there is a bias;
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
    """The cost of one example in one convolution or linear layer.

    `name` is the name of the layer's weight as in `named_parameters` ("layer1.0.conv1.weight");
    `multiplications_per_weight` how often one weight is used (the output positions of a convolution, 1 for a
    linear layer on flat input, 0 for a layer that the forward pass does not reach); `bias_flops` the
    additions of the bias; `weights` the number of weights when dense.
    """

    name: str
    multiplications_per_weight: int
    bias_flops: int
    weights: int


def layer_costs(
    module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype | None = None
) -> tuple[LayerCost, ...]:
    """The cost of each convolution and linear layer, from one forward pass of one example of zeros.

    `input_shape` is one example without batch, (C, H, W) or (F,); `dtype` its type if it is not a float.
    Layers are in `named_parameters` order; one whose weight is computed (weight_norm) comes last. A layer called
    several times, or a weight shared by several layers, is counted once per call. Weights used outside
    nn.Conv*/nn.Linear modules (torch.nn.functional calls, attention's packed projections) are not seen.
    The module, its training flags and the global random state do not change.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    keys: dict[int, str] = {}  # id of a layer → name of its weight
    sizes: dict[str, int] = {}
    for prefix, layer in module.named_modules():
        if isinstance(layer, COUNTED):
            weight = layer._parameters.get("weight")  # None if it is computed (weight_norm)
            own = f"{prefix}.weight" if prefix else "weight"
            keys[id(layer)] = own if weight is None else names[id(weight)]
            sizes.setdefault(keys[id(layer)], _weights(layer))
    calls = _counted_calls(module, keys, input_shape, 1, dtype)
    order = {name: at for at, name in enumerate(names.values())}
    return tuple(
        LayerCost(name, *calls[name], sizes[name])
        for name in sorted(sizes, key=lambda n: order.get(n, len(order)))
    )


def _weights(layer: nn.Module) -> int:
    """Number of weights, from the layer's sizes: reading a computed weight (spectral_norm) may change the layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    assert isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS))
    return layer.in_channels * layer.out_channels // layer.groups * math.prod(layer.kernel_size)


def _counted_calls(
    module: nn.Module,
    keys: Mapping[int, str],
    input_shape: Sequence[int],
    examples: int,
    dtype: torch.dtype | None,
) -> dict[str, tuple[int, int]]:
    """Weight's name → multiplications per weight and additions of the bias, for one example.

    Runs two examples if the network fails on a single one.
    """
    calls = {name: [0, 0] for name in keys.values()}
    handles = [
        layer.register_forward_hook(_counting_hook(calls, keys))
        for layer in module.modules()
        if isinstance(layer, COUNTED)
    ]
    try:
        forward_zeros(module, input_shape, examples, dtype)
    except Exception:  # a layer that needs more than one example may raise any error
        if examples > 1:
            raise
        return _counted_calls(module, keys, input_shape, 2, dtype)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (used // examples, added // examples) for name, (used, added) in calls.items()}


def _counting_hook(
    calls: Mapping[str, list[int]], keys: Mapping[int, str]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, COUNTED)
        entry = calls[keys[id(layer)]]
        # A transposed convolution applies the kernel at each input position, so the input is counted.
        x = inputs[0] if isinstance(layer, TRANSPOSED_CONVOLUTIONS) else output
        entry[0] += _positions(layer, x)
        if layer.bias is not None:
            entry[1] += output.numel()

    return count


def _positions(layer: nn.Module, x: Tensor) -> int:
    """The number of positions of `x` (all examples) at which the layer's weights are used."""
    if isinstance(layer, nn.Linear):
        return math.prod(x.shape[:-1])
    spatial_dims = len(layer.kernel_size)  # type: ignore[arg-type]
    return math.prod((*x.shape[: -spatial_dims - 1], *x.shape[-spatial_dims:]))


def float_tensor(module: nn.Module) -> Tensor:
    """The module's first parameter or buffer of floats, for its type and device; an empty tensor if it has none."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def forward_zeros(
    module: nn.Module, input_shape: Sequence[int], examples: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Output of one evaluation-mode pass over `examples` examples of zeros; the module does not change.

    The zeros have type `dtype`, or that of the module's first float tensor, and are on its device. Training flags are
    restored one by one (a user's network may keep some layers in evaluation mode). Random draws in the forward pass
    do not change the global generators.
    """
    like = float_tensor(module)
    zeros = torch.zeros(examples, *input_shape, dtype=dtype or like.dtype, device=like.device)
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

    Layers that are not in `kept` are dense; None: all are dense. Biases are never pruned. Raises ValueError
    for a name that is not a layer, or for a count outside 0 to the layer's number of weights.
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
                f"kept names {name!r}, which is not a weight of a convolution or linear layer; "
                f"allowed: {', '.join(weights)}"
            )
        if not 0 <= count <= weights[name]:
            raise ValueError(f"kept[{name!r}] is {count}; allowed: 0 to {weights[name]}")


def training_flops(forward: int, examples: int, epochs: int) -> int:
    """FLOPs of training on `examples` examples for `epochs` epochs: backward costs two forward passes."""
    return 3 * forward * examples * epochs
