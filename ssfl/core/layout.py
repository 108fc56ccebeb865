"""A model is one flat vector; a layout gives the position of each tensor in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ssfl.core.tensor_roles import prunable_names, tensor_roles


@dataclass(frozen=True)
class Layout:
    """The positions of named tensors in one flat vector `theta [P]`.

    Trained parameters come first, in `named_parameters` order, and fill `theta[:T]`. Carried buffers
    (BatchNorm's running statistics) follow and fill `theta[T:]`; they are sent and averaged, but have no
    gradient. Constants and aliases are not in theta (`tensor_roles`).

    P: all coordinates. T: trained coordinates. N: coordinates that may be pruned, the weights of convolutions
    and linear layers (paper-level definition; biases and normalisation are never masked). Scores and masks
    over prunable coordinates are vectors [N] in layout order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    prunable: tuple[bool, ...]
    trained: tuple[bool, ...]
    whole: tuple[str, ...] = ()
    """Names of carried tensors that are integers in the module: floats in theta, rounded when they are loaded."""

    @staticmethod
    def of(module: nn.Module) -> Layout:
        """The layout of a module: its trained parameters, then its carried buffers. Raises LayoutError."""
        prunable, roles = prunable_names(module), tensor_roles(module)
        trained = [t for t in roles if t.role == "trained"]
        carried = [t for t in roles if t.role == "carried"]
        return Layout(
            names=tuple(t.name for t in (*trained, *carried)),
            shapes=tuple(t.shape for t in (*trained, *carried)),
            prunable=tuple(t.name in prunable for t in trained) + (False,) * len(carried),
            trained=(True,) * len(trained) + (False,) * len(carried),
            whole=tuple(t.name for t in carried if not t.dtype.is_floating_point),
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
        """T: the coordinates that training changes by gradients, `theta[:T]`."""
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

    def slice_of(self, number: int) -> slice:
        """The coordinates of the tensor `names[number]`."""
        return slice(self.offsets[number], self.offsets[number] + self.sizes[number])

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
        whole = theta.shape[-1] == self.size
        count = len(self.names) if whole else sum(self.trained)
        # One split for all: its gradient is one concatenation, not a sum of padded vectors.
        pieces = torch.split(theta, list(self.sizes[:count]), -1)
        names, shapes = self.names[:count], self.shapes[:count]
        return {name: _shaped(piece, shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}

    def carried(self, tail: Tensor) -> dict[str, Tensor]:
        """`theta[..., T:]` as named buffers sharing its memory."""
        out: dict[str, Tensor] = {}
        for name, shape, at, n, t in zip(
            self.names, self.shapes, self.offsets, self.sizes, self.trained, strict=True
        ):
            if not t:
                start = at - self.trained_size
                out[name] = _shaped(tail[..., start : start + n], shape)
        return out

    def statistics(self, tail: Tensor) -> dict[str, Tensor]:
        """`carried` without the integers: the buffers that a network may use without conversion."""
        return {name: t for name, t in self.carried(tail).items() if name not in self.whole}

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """All of theta [P] by name; integers are rounded to int64."""
        carried = self.carried(theta[self.trained_size :])
        rounded = {name: carried[name].round().to(torch.int64) for name in self.whole}
        return self.views(theta[: self.trained_size]) | carried | rounded

    def flatten(self, module: nn.Module) -> Tensor:
        """The module's trained parameters and carried buffers as a new vector [P], of its first parameter's type."""
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        if not set(self.names) <= own.keys() or any(
            own[name].shape != shape for name, shape in zip(self.names, self.shapes, strict=True)
        ):
            raise ValueError("the module's tensors are not those of this layout")
        tensors = [own[name].detach().reshape(-1) for name in self.names]
        return torch.cat([t.to(tensors[0].dtype) for t in tensors]) if tensors else torch.empty(0)

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
        """How many coordinates of each prunable tensor a mask keeps: [P], [T], or [N], recognised by its length."""
        if mask.shape[-1] == self.prunable_size:
            return {n: int(mask[a:b].count_nonzero()) for n, a, b in self.prunable_segments}
        spans = zip(self.names, self.offsets, self.sizes, self.prunable, strict=True)
        return {n: int(mask[at : at + k].count_nonzero()) for n, at, k, p in spans if p}

    @cached_property
    def digest(self) -> bytes:
        """A hash of 8 bytes that two sites compare before they train together."""
        described = [
            self.names,
            self.shapes,
            self.prunable,
            self.trained,
            *([self.whole] if self.whole else []),
        ]
        text = json.dumps(described).encode()
        return hashlib.blake2b(text, digest_size=8).digest()


def layer_densities(layout: Layout, mask: Tensor) -> Mapping[str, float]:
    """Share kept (0-1) of each prunable tensor under a mask [P], [T] or [N]."""
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return {name: kept / sizes[name] for name, kept in layout.kept_per_layer(mask).items()}


def _shaped(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    return block.view(block.shape[:-1] + shape)
