"""Typed messages between server and clients. A part has a kind, a length and an encoding as bytes.

`docs/wire-format.md` defines the format; `ssfl.wire.message` encodes and decodes messages; `ssfl.wire.parts` has the
coded parts.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.reading import Reader, bits_nbytes, packed_bits, raw_bytes
from ssfl.native.memory_bound.vectors import expand, expands, pack

SERVER = -1
"""Sender of a payload that comes from the server; clients are numbered from 0."""

SCORES = "scores"
"""Name of the part with saliency scores over prunable coordinates [N]; scores have separate codecs."""
FACTORS = "factors"
"""Name of the part with the factors of scores [F] (`ssfl.core.factored`); they are few and not coded."""

HEADER_BYTES = 20
PART_HEADER_BYTES = 16
DIGEST_BYTES = 8
CHECKSUM_BYTES = 4


@final
@dataclass(frozen=True)
class PartHead:
    """The header of a part, besides its kind and length."""

    count: int
    """Values or coordinates after decoding."""
    dtype: torch.dtype = torch.float32
    """Type of the values after decoding; float32 for masks, which have none."""
    codec: int = 0


class Part(ABC):
    """One part of a payload. Parts are frozen dataclasses; the table of all kinds is `ssfl.wire.parts.PARTS`."""

    kind: ClassVar[int]
    """Number of the part type in messages."""
    has_values: ClassVar[bool] = True
    """False for masks; in messages their value type is 0."""
    codecs: ClassVar[Collection[int]] = (0,)
    """Numbers of the codecs that bodies may have; 0: none."""

    @property
    @abstractmethod
    def head(self) -> PartHead:
        """Count, value type and codec."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Length of the body in bytes."""

    @property
    @abstractmethod
    def metadata_nbytes(self) -> int:
        """Number of these bytes that are not content: digests, scales, supports."""

    @abstractmethod
    def write(self) -> Sequence[bytes | memoryview]:
        """The body in pieces with `nbytes` bytes in total."""

    @classmethod
    @abstractmethod
    def read(cls, head: PartHead, reader: Reader) -> Part:
        """Reads a part's body. Raises WireError."""

    @cached_property
    def version(self) -> bytes:
        """8 bytes that identify the values of this part, for references: BLAKE2b over the body."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for piece in self.write():
            digest.update(piece)
        return digest.digest()


@final
@dataclass(frozen=True)
class DenseValues(Part):
    """All values of a vector [n], without indices: a model, or scores over prunable coordinates."""

    kind = 0
    values: Tensor

    @property
    def head(self) -> PartHead:
        return PartHead(self.values.numel(), self.values.dtype)

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    @property
    def metadata_nbytes(self) -> int:
        return 0

    def write(self) -> Sequence[bytes | memoryview]:
        return [raw_bytes(self.values)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> DenseValues:
        return cls(reader.values(head.count, head.dtype))


@final
@dataclass(frozen=True)
class MaskBits(Part):
    """A mask [n] (bool), one bit each."""

    kind = 1
    has_values = False
    bits: Tensor

    @property
    def head(self) -> PartHead:
        return PartHead(self.bits.numel())

    @property
    def nbytes(self) -> int:
        return bits_nbytes(self.bits.numel())

    @property
    def metadata_nbytes(self) -> int:
        return 0

    def write(self) -> Sequence[bytes | memoryview]:
        return [packed_bits(self.bits)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> MaskBits:
        return cls(reader.bits(head.count))


@final
@dataclass(frozen=True)
class SparseValues(Part):
    """Values [nnz] with their support [n] (bool), one bit per coordinate; for masks that the receiver does not have."""

    kind = 2
    values: Tensor
    bits: Tensor

    @property
    def head(self) -> PartHead:
        return PartHead(self.bits.numel(), self.values.dtype)

    @property
    def nbytes(self) -> int:
        return self.metadata_nbytes + self.values.numel() * self.values.element_size()

    @property
    def metadata_nbytes(self) -> int:
        return bits_nbytes(self.bits.numel())

    def write(self) -> Sequence[bytes | memoryview]:
        return [packed_bits(self.bits), raw_bytes(self.values)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> SparseValues:
        bits = reader.bits(head.count)
        return cls(reader.values(int(bits.count_nonzero()), head.dtype), bits)


@final
@dataclass(frozen=True)
class MaskedValues(Part):
    """Values [nnz] on a mask that the receiver has, identified by its digest (8 bytes). Indices are not sent."""

    kind = 3
    values: Tensor
    support: bytes
    counts: tuple[int, ...] = ()
    """Values in each tensor of the layout, for codecs with one step per tensor; empty if not known. Not sent."""

    @property
    def head(self) -> PartHead:
        return PartHead(self.values.numel(), self.values.dtype)

    @property
    def nbytes(self) -> int:
        return DIGEST_BYTES + self.values.numel() * self.values.element_size()

    @property
    def metadata_nbytes(self) -> int:
        return DIGEST_BYTES

    def write(self) -> Sequence[bytes | memoryview]:
        return [self.support, raw_bytes(self.values)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> MaskedValues:
        support = bytes(reader.take(DIGEST_BYTES))
        return cls(reader.values(head.count, head.dtype), support)


@dataclass(frozen=True)
class Payload:
    """Named parts from one sender. Names are short ASCII ("w", "mask"); order is part of the payload."""

    parts: Mapping[str, Part]
    sender: int = SERVER


def nbytes(payload: Payload) -> int:
    """Length of the payload's message in bytes, in closed form; the ledger adds these up."""
    parts = sum(PART_HEADER_BYTES + len(name) + part.nbytes for name, part in payload.parts.items())
    return HEADER_BYTES + parts + CHECKSUM_BYTES


def metadata_nbytes(payload: Payload) -> int:
    """Number of the `nbytes` that are not values, scores or mask bits: headers, digests, scales, supports, checksum."""
    parts = sum(PART_HEADER_BYTES + len(n) + p.metadata_nbytes for n, p in payload.parts.items())
    return HEADER_BYTES + parts + CHECKSUM_BYTES


@final
@dataclass(frozen=True)
class Traffic:
    """The bytes of a message."""

    nbytes: int
    metadata_nbytes: int

    @staticmethod
    def of(payload: Payload) -> Traffic:
        """The bytes of an encoded payload."""
        return Traffic(nbytes(payload), metadata_nbytes(payload))


def digest_of_bits(bits: Tensor) -> bytes:
    """8 bytes that identify a mask [n]: BLAKE2b over its packed bits."""
    packed = np.packbits(bits.numpy())
    return hashlib.blake2b(packed.tobytes(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Support:
    """A mask [P] that both sides hold, with its indices and its digest, for packing values."""

    mask: Tensor
    index: Tensor = field(repr=False)
    digest: bytes
    counts: tuple[int, ...] = ()
    """Coordinates kept in each tensor, if the layout was given."""

    @staticmethod
    def of(mask: Tensor, layout: Layout | None = None) -> Support:
        """From a mask [P] (bool) over the coordinates of `layout`."""
        counts = () if layout is None else kept_counts(layout, mask)
        return Support(mask, mask.nonzero().squeeze(1).to(torch.int32), digest_of_bits(mask), counts)

    @cached_property
    def long_index(self) -> Tensor:
        """The index as int64: PyTorch scatters only with int64, but gathers faster with int32."""
        return self.index.long()

    def pack(self, theta: Tensor) -> MaskedValues:
        """The values [nnz] of theta [P] on this support."""
        return MaskedValues(torch.index_select(theta, 0, self.index), self.digest, self.counts)

    def values(self, part: Part) -> Tensor:
        """The values [nnz] of a part on this support. Raises ValueError if they belong to another mask."""
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
        """theta [P] with values [nnz] on the support and zeros elsewhere."""
        if expands(self.mask, values):
            return expand(self.mask, values)
        theta = torch.zeros(self.mask.shape, dtype=values.dtype)
        return theta.scatter_(0, self.long_index, values)  # twice as fast as index_copy_ (bench_core)

    def unpack(self, part: Part) -> Tensor:
        """theta [P] from a part: `scatter(values(part))`."""
        return self.scatter(self.values(part))


def kept_counts(layout: Layout, mask: Tensor) -> tuple[int, ...]:
    """Number of coordinates that a mask [P] (bool) keeps in each tensor of the layout."""
    spans = zip(layout.offsets, layout.sizes, strict=True)
    return tuple(int(mask[at : at + n].count_nonzero()) for at, n in spans)


def pack_sparse(theta: Tensor, mask: Tensor) -> SparseValues:
    """The values of theta [P] on a mask [P] (bool), with the mask."""
    return SparseValues(pack(mask, theta) if expands(mask, theta) else theta[mask], mask)


def dense_values(part: Part) -> Tensor:
    """The vector [n] of a part with dense values or with its own support. Raises ValueError for others."""
    if isinstance(part, DenseValues):
        return part.values
    if isinstance(part, SparseValues):
        if expands(part.bits, part.values):
            return expand(part.bits, part.values)
        return torch.zeros(part.bits.shape, dtype=part.values.dtype).masked_scatter_(part.bits, part.values)
    raise ValueError(f"a {type(part).__name__} does not describe a vector alone")
