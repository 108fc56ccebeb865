"""What travels between server and clients, typed; the bytes of a payload are a function of it.

`docs/wire-format.md` gives the format; `codec.py` makes and reads the bytes; `nbytes` is their closed form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ssfl.native.vectors import expand, expands

SERVER = -1
"""Sender of a payload that comes from the server; clients are numbered from 0."""

HEADER_BYTES = 10
PART_HEADER_BYTES = 7
DIGEST_BYTES = 8
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class DenseValues:
    """All values of a vector [n], without indices: a model, or scores over prunable coordinates."""

    values: Tensor


@dataclass(frozen=True)
class MaskBits:
    """A mask [n] (bool), one bit each."""

    bits: Tensor


@dataclass(frozen=True)
class SparseValues:
    """Values [nnz] with their own support [n] (bool), one bit an index: for masks the receiver does not know."""

    values: Tensor
    bits: Tensor


@dataclass(frozen=True)
class MaskedValues:
    """Values [nnz] alone: the receiver holds the support, named by its digest (8 bytes). No indices travel."""

    values: Tensor
    support: bytes


Part = DenseValues | MaskBits | SparseValues | MaskedValues


@dataclass(frozen=True)
class Payload:
    """Named parts from one sender. Names are short ASCII ("w", "mask"); order is part of the payload."""

    parts: Mapping[str, Part]
    sender: int = SERVER


def bits_nbytes(count: int) -> int:
    """Bytes of `count` packed bits."""
    return -(-count // 8)


def part_nbytes(part: Part) -> int:
    """Bytes of a part's body."""
    if isinstance(part, MaskBits):
        return bits_nbytes(part.bits.numel())
    values = part.values.numel() * part.values.element_size()
    if isinstance(part, SparseValues):
        return bits_nbytes(part.bits.numel()) + values
    return values + (DIGEST_BYTES if isinstance(part, MaskedValues) else 0)


def nbytes(payload: Payload) -> int:
    """Closed form of `len(encode(payload))`: what a ledger adds up."""
    parts = sum(PART_HEADER_BYTES + len(n) + part_nbytes(p) for n, p in payload.parts.items())
    return HEADER_BYTES + parts + CHECKSUM_BYTES


def digest_of_bits(bits: Tensor) -> bytes:
    """8 bytes that name a mask [n]: BLAKE2b over its packed bits."""
    packed = np.packbits(bits.numpy())
    return hashlib.blake2b(packed.tobytes(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Support:
    """A mask [P] that both sides hold, with the indices and the digest that packing needs, made once."""

    mask: Tensor
    index: Tensor = field(repr=False)
    digest: bytes

    @staticmethod
    def of(mask: Tensor) -> Support:
        """From a mask [P] (bool)."""
        return Support(mask, mask.nonzero().squeeze(1).to(torch.int32), digest_of_bits(mask))

    @cached_property
    def long_index(self) -> Tensor:
        """The index as int64: PyTorch scatters with nothing smaller, but gathers faster with int32."""
        return self.index.long()

    def pack(self, theta: Tensor) -> MaskedValues:
        """The values [nnz] of theta [P] on this support."""
        return MaskedValues(torch.index_select(theta, 0, self.index), self.digest)

    def values(self, part: Part) -> Tensor:
        """The values [nnz] of a part on this support; ValueError when they belong to another mask."""
        if not isinstance(part, MaskedValues):
            raise ValueError(f"expected values on a known mask, got {type(part).__name__}")
        if part.support != self.digest:
            raise ValueError(
                f"values for mask {part.support.hex()}, but this side holds mask {self.digest.hex()}"
            )
        if part.values.numel() != self.index.numel():
            raise ValueError(f"{part.values.numel()} values for a mask that keeps {self.index.numel()}")
        return part.values

    def scatter(self, values: Tensor) -> Tensor:
        """Values [nnz] to theta [P], zero off the support."""
        if expands(self.mask, values):
            return expand(self.mask, values)
        theta = torch.zeros(self.mask.shape, dtype=values.dtype)
        return theta.scatter_(0, self.long_index, values)  # twice as fast as index_copy_ (bench_core)

    def unpack(self, part: Part) -> Tensor:
        """A part's values to theta [P]: `scatter(values(part))`."""
        return self.scatter(self.values(part))


def pack_sparse(theta: Tensor, mask: Tensor) -> SparseValues:
    """Values of theta [P] where the mask [P] holds, with the mask itself."""
    return SparseValues(theta[mask], mask)


def dense_values(part: Part) -> Tensor:
    """The vector [n] of a dense or self-describing sparse part."""
    if isinstance(part, DenseValues):
        return part.values
    if isinstance(part, SparseValues):
        if expands(part.bits, part.values):
            return expand(part.bits, part.values)
        return torch.zeros(part.bits.shape, dtype=part.values.dtype).masked_scatter_(part.bits, part.values)
    raise ValueError(f"a {type(part).__name__} does not describe a vector by itself")
