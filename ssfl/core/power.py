"""The power re-parameterisation: the network sees sign(v) * |v| ** beta of what is trained.

Powerpropagation (Schwarz et al. 2021); SparsyFed (ICLR 2025) takes it over with beta = 1.25. Small weights move less,
so magnitude pruning costs less; a weight at exactly 0 has gradient 0 and stays there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssfl.core.activation_pruning import matches
from ssfl.core.layout import Layout

TRUNCATION = 0.87962566103423978
"""Standard deviation of a unit normal cut at 2: divided out, so that drawn weights have the asked-for one."""


@dataclass(frozen=True)
class PowerLayers:
    """Which layers are re-parameterised and how."""

    beta: float = 1.25
    """The exponent, >= 1; 1 is an ordinary layer."""
    plain_layers: tuple[str, ...] = ("*shortcut*", "*downsample*")
    """Shell patterns of layer names that stay ordinary: the shortcut convolutions of ResNets, which the authors'
    swap of layers misses. They are pruned all the same."""

    def __post_init__(self) -> None:
        if not self.beta >= 1.0:
            raise ValueError(
                f"beta={self.beta}: the exponent must be at least 1 (below, gradients at 0 are infinite)"
            )

    def is_power(self, weight_name: str) -> bool:
        """Whether a prunable tensor ("layer1.0.conv1.weight") belongs to such a layer."""
        return not matches(weight_name.rpartition(".")[0], self.plain_layers)

    def coordinates(self, layout: Layout) -> Tensor:
        """[T] bool: True where the network sees a power."""
        flags = [
            torch.full((size,), prunable and self.is_power(name))
            for name, size, prunable in zip(layout.names, layout.sizes, layout.prunable, strict=True)
        ]
        return torch.cat(flags)[: layout.trained_size]

    def effective(self, v: Tensor, power: Tensor) -> Tensor:
        """sign(v) * |v| ** beta where `power` [..., T] holds, else v [..., T]. Its derivative at 0 is 0, not NaN."""
        if self.beta == 1.0:
            return v
        return torch.where(power, v.sign() * v.abs() ** self.beta, v)

    def initialised(self, theta: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
        """theta [P] with power layers drawn anew, their biases 0; all else as it was.

        The effective weight is a normal of standard deviation sqrt(1 / fan_in), cut at two deviations of the
        normal it is cut from (std / 0.8796), and v its signed root: the authors' initialisation.
        """
        out = theta.clone()
        bounds = zip(layout.names, layout.shapes, layout.prunable, strict=True)
        power = {name: shape for name, shape, prunable in bounds if prunable and self.is_power(name)}
        biases = {name.rpartition(".")[0] + ".bias" for name in power}
        for name, view in layout.views(out).items():
            if name in biases:
                view.zero_()
            elif name in power:
                deviation = math.sqrt(1 / math.prod(power[name][1:])) / TRUNCATION
                drawn = _truncated_normal(view.shape, deviation, generator).to(view)
                view.copy_(drawn.sign() * drawn.abs() ** (1 / self.beta))
        return out


def _truncated_normal(shape: torch.Size, deviation: float, generator: torch.Generator) -> Tensor:
    """A normal of mean 0 cut at two deviations."""
    out = torch.empty(shape, dtype=torch.float32)
    return torch.nn.init.trunc_normal_(
        out, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator
    )
