"""The power re-parameterisation: the network's weights are sign(v) * |v| ** beta of the trained v.

Powerpropagation (Schwarz et al. 2021); SparsyFed (ICLR 2025) uses it with beta = 1.25. Small weights change less, so
magnitude pruning costs less accuracy; a weight at exactly 0 has gradient 0 and stays 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssfl.core.activation_pruning import matches
from ssfl.core.layout import Layout

TRUNCATION = 0.87962566103423978
"""Standard deviation of a unit normal truncated at 2; divided out, so that drawn weights have the desired deviation."""


@dataclass(frozen=True)
class PowerLayers:
    """Which layers are re-parameterised and how."""

    beta: float = 1.25
    """The exponent, >= 1; 1 is an ordinary layer."""
    plain_layers: tuple[str, ...] = ("*shortcut*", "*downsample*")
    """Shell patterns of layer names that are not re-parameterised: the shortcut convolutions of ResNets, as in the
    authors' code. Their weights are pruned like others."""

    def __post_init__(self) -> None:
        if not self.beta >= 1.0:
            raise ValueError(
                f"beta={self.beta}: the exponent must be at least 1 (below 1, gradients at 0 are infinite)"
            )

    def is_power(self, weight_name: str) -> bool:
        """Whether a prunable tensor ("layer1.0.conv1.weight") is re-parameterised."""
        return not matches(weight_name.rpartition(".")[0], self.plain_layers)

    def coordinates(self, layout: Layout) -> Tensor:
        """The re-parameterised coordinates, [T] (bool)."""
        flags = [
            torch.full((size,), prunable and self.is_power(name))
            for name, size, prunable in zip(layout.names, layout.sizes, layout.prunable, strict=True)
        ]
        return torch.cat(flags)[: layout.trained_size]

    def effective(self, v: Tensor, power: Tensor) -> Tensor:
        """sign(v) * |v| ** beta where `power` [..., T] is True, else v [..., T]. The derivative at 0 is 0, not NaN."""
        if self.beta == 1.0:
            return v
        seen, _ = _Power.apply(v, power, self.beta)  # type: ignore[no-untyped-call]
        return seen  # type: ignore[no-any-return]

    def initialised(self, theta: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
        """theta [P] with new random weights and zero biases in convolutions and linear layers; the rest unchanged.

        The effective weight is a normal of standard deviation sqrt(1 / fan_in), truncated at two deviations of the
        underlying normal (std / 0.8796); v is its signed root in power layers and the weight itself in plain ones.
        This is the authors' initialisation.
        """
        out = theta.clone()
        bounds = zip(layout.names, layout.shapes, layout.prunable, strict=True)
        redrawn = {name: shape for name, shape, prunable in bounds if prunable}
        # Without a dot if the network itself is the layer.
        biases = {"".join(name.rpartition(".")[:2]) + "bias" for name in redrawn}
        for name, view in layout.views(out).items():
            if name in biases:
                view.zero_()
            elif name in redrawn:
                deviation = math.sqrt(1 / math.prod(redrawn[name][1:])) / TRUNCATION
                drawn = _truncated_normal(view.shape, deviation, generator).to(view)
                root = 1 / self.beta if self.is_power(name) else 1.0
                view.copy_(drawn.sign() * drawn.abs() ** root)
        return out


class _Power(torch.autograd.Function):
    """(v * |v| ** (beta - 1) where `power` is True, else v; its derivative); both share the root."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, power: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        wanted, root = power.to(v.dtype), _root(v.abs(), beta - 1)
        # Sums of products, which are several times faster than torch.where.
        rest = 1 - wanted
        return v * torch.addcmul(rest, wanted, root), torch.addcmul(rest, wanted, root, value=beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        v, power, ctx.beta = inputs
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(v, power, outputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        v, power, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second-order gradient is requested
            slope = torch.where(power, ctx.beta * v.abs() ** (ctx.beta - 1), 1.0)
        return gradients[0] * slope, None, None


def _root(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for x >= 0; a fourth root as two inverse square roots (0 via infinity), which is much faster."""
    return x.rsqrt().rsqrt_() if exponent == 0.25 else x**exponent


def _truncated_normal(shape: torch.Size, deviation: float, generator: torch.Generator) -> Tensor:
    """A normal of mean 0, truncated at two deviations."""
    out = torch.empty(shape, dtype=torch.float32)
    return torch.nn.init.trunc_normal_(
        out, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator
    )
