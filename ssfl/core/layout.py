"""A model is one flat vector and a layout that says what lies where."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

PRUNABLE_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class Layout:
    """How named tensors lie in one flat vector `theta [P]`.

    Trained parameters come first, in `named_parameters` order, and fill `theta[:T]`; floating point buffers
    (BatchNorm's running statistics) follow and fill `theta[T:]`. They travel and are averaged, but no
    gradient moves them.

    P: all coordinates. T: trained coordinates. N: coordinates that may be pruned, the weights of convolutions
    and linear layers (paper-level definition; biases and normalisation are never masked). Scores and masks
    over prunable coordinates are vectors [N] in layout order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    prunable: tuple[bool, ...]
    trained: tuple[bool, ...]

    @staticmethod
    def of(module: nn.Module) -> Layout:
        """The layout of a module: its parameters, then its floating point buffers."""
        weights = {
            f"{prefix}.weight" if prefix else "weight"
            for prefix, part in module.named_modules()
            if isinstance(part, PRUNABLE_MODULES)
        }
        parameters = list(module.named_parameters())
        buffers = _float_buffers(module)
        items = [(n, p) for n, p in parameters] + buffers
        return Layout(
            names=tuple(n for n, _ in items),
            shapes=tuple(tuple(p.shape) for _, p in items),
            prunable=tuple(n in weights for n, _ in parameters) + (False,) * len(buffers),
            trained=(True,) * len(parameters) + (False,) * len(buffers),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each tensor."""
        return tuple(math.prod(s) for s in self.shapes)

    @cached_property
    def size(self) -> int:
        """P: all coordinates."""
        return sum(self.sizes)

    @cached_property
    def trained_size(self) -> int:
        """T: the coordinates that gradients move, `theta[:T]`."""
        return sum(n for n, t in zip(self.sizes, self.trained, strict=True) if t)

    @cached_property
    def prunable_size(self) -> int:
        """N: the coordinates that a mask may drop."""
        return sum(n for n, p in zip(self.sizes, self.prunable, strict=True) if p)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in theta."""
        at, out = 0, []
        for n in self.sizes:
            out.append(at)
            at += n
        return tuple(out)

    @cached_property
    def prunable_segments(self) -> tuple[tuple[str, int, int], ...]:
        """(name, start, stop) of each prunable tensor within a vector [N]."""
        at, out = 0, []
        for name, n, p in zip(self.names, self.sizes, self.prunable, strict=True):
            if p:
                out.append((name, at, at + n))
                at += n
        return tuple(out)

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """`theta [..., P]` (or `[..., T]`: the trained part) as named tensors `[..., *shape]` sharing its memory."""
        out: dict[str, Tensor] = {}
        for name, shape, at, n in zip(self.names, self.shapes, self.offsets, self.sizes, strict=True):
            if at + n > theta.shape[-1]:
                break
            out[name] = _shaped(theta[..., at : at + n], shape)
        return out

    def statistics(self, tail: Tensor) -> dict[str, Tensor]:
        """`theta[..., T:]` as named buffers sharing its memory."""
        out: dict[str, Tensor] = {}
        for name, shape, at, n, t in zip(
            self.names, self.shapes, self.offsets, self.sizes, self.trained, strict=True
        ):
            if not t:
                start = at - self.trained_size
                out[name] = _shaped(tail[..., start : start + n], shape)
        return out

    def flatten(self, module: nn.Module) -> Tensor:
        """The module's parameters and float buffers as a new vector [P]."""
        own = dict(module.named_parameters()) | dict(_float_buffers(module))
        if tuple(own) != self.names:
            raise ValueError("the module's tensors are not those of this layout")
        return torch.cat([t.detach().reshape(-1) for t in own.values()])

    def prunable_bits(self) -> Tensor:
        """[P] bool: True where a coordinate may be pruned."""
        flags = [
            torch.full((n,), p, dtype=torch.bool) for n, p in zip(self.sizes, self.prunable, strict=True)
        ]
        return torch.cat(flags)

    def take_prunable(self, vector: Tensor) -> Tensor:
        """The prunable coordinates [..., N] of a vector [..., P] or [..., T]."""
        parts = [
            vector[..., at : at + n]
            for at, n, p in zip(self.offsets, self.sizes, self.prunable, strict=True)
            if p
        ]
        return torch.cat(parts, dim=-1) if parts else vector[..., :0]

    def count_prunable(self, vector: Tensor) -> int:
        """How many of the prunable coordinates of a vector [P] or [T] are not zero."""
        spans = zip(self.offsets, self.sizes, self.prunable, strict=True)
        return sum(int(vector[at : at + n].count_nonzero()) for at, n, p in spans if p)

    def expand_mask(self, bits: Tensor) -> Tensor:
        """Bits over prunable coordinates [N] -> a mask over all coordinates [P] that keeps everything else."""
        if bits.shape != (self.prunable_size,):
            raise ValueError(f"a mask of {tuple(bits.shape)} bits for {self.prunable_size} prunable weights")
        out = torch.ones(self.size, dtype=torch.bool, device=bits.device)
        start = 0
        for at, n, p in zip(self.offsets, self.sizes, self.prunable, strict=True):
            if p:
                out[at : at + n] = bits[start : start + n]
                start += n
        return out

    def kept_per_layer(self, mask: Tensor) -> dict[str, int]:
        """How many coordinates of each prunable tensor a mask [P] or [N] keeps."""
        if mask.shape[-1] == self.prunable_size:
            return {n: int(mask[a:b].count_nonzero()) for n, a, b in self.prunable_segments}
        spans = zip(self.names, self.offsets, self.sizes, self.prunable, strict=True)
        return {n: int(mask[at : at + k].count_nonzero()) for n, at, k, p in spans if p}

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that two sites compare before they train together."""
        text = json.dumps([self.names, self.shapes, self.prunable, self.trained]).encode()
        return hashlib.blake2b(text, digest_size=8).digest()


def layer_densities(layout: Layout, mask: Tensor) -> Mapping[str, float]:
    """Share kept (0-1) of each prunable tensor under a mask [P] or [N]."""
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return {name: kept / sizes[name] for name, kept in layout.kept_per_layer(mask).items()}


def _shaped(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    return block.view(*block.shape[:-1], *shape)


def _float_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, b) for n, b in module.named_buffers() if b.is_floating_point()]
