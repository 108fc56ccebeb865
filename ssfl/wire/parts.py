"""Coded parts: masks and values encoded by a codec and decoded on request; and the table of all part types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ssfl.core.payloads import (
    DIGEST_BYTES,
    DenseValues,
    MaskBits,
    MaskedValues,
    Part,
    PartHead,
    SparseValues,
)
from ssfl.core.reading import Reader, WireError, bits_nbytes, octets, raw_bytes
from ssfl.wire.half import Half
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.mask_codec import PACKED, SORTED, decode_packed, decode_sorted
from ssfl.wire.uniform import Uniform
from ssfl.wire.value_codec import ValueCodec

VALUE_CODECS: Mapping[int, type[ValueCodec]] = {c.code: c for c in (Lossless, Half, Int8, Uniform, Log)}
NO_VERSION = bytes(DIGEST_BYTES)
"""The reference of values without one, and the support of dense values."""
_TAIL_BYTES = 4
_MASK_HEAD_BYTES = 9


@final
@dataclass(frozen=True)
class CodedMask(Part):
    """A mask [count], encoded by a codec."""

    kind = 4
    has_values = False
    codecs = (PACKED, SORTED)
    codec: int
    count: int
    body: Tensor
    """uint8 [m]."""

    @property
    def head(self) -> PartHead:
        return PartHead(self.count, codec=self.codec)

    @property
    def nbytes(self) -> int:
        return len(self.body)

    @property
    def metadata_nbytes(self) -> int:
        return 0

    def write(self) -> Sequence[bytes | memoryview]:
        return [raw_bytes(self.body)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> CodedMask:
        return cls(head.codec, head.count, octets(reader.take(reader.left)))

    def decoded(self) -> MaskBits:
        """Decode the mask. Raises WireError."""
        decode = decode_sorted if self.codec == SORTED else decode_packed
        return MaskBits(decode(raw_bytes(self.body), self.count))


@final
@dataclass(frozen=True)
class CodedValues(Part):
    """Dense values [count], or values on a mask that the receiver holds, encoded by a codec."""

    kind = 5
    codecs = VALUE_CODECS.keys()
    codec: int
    count: int
    reference: bytes
    """Version of the values to add; NO_VERSION: none."""
    support: bytes
    """Digest of the mask; NO_VERSION: dense."""
    tail: Tensor
    """The last values, not coded; their type is the type of all values."""
    data: Tensor
    """uint8 [m], the encoded values."""

    @property
    def head(self) -> PartHead:
        return PartHead(self.count, self.tail.dtype, self.codec)

    @property
    def nbytes(self) -> int:
        return 2 * DIGEST_BYTES + _TAIL_BYTES + self.tail.nbytes + len(self.data)

    @property
    def metadata_nbytes(self) -> int:
        return (
            2 * DIGEST_BYTES + _TAIL_BYTES + _data_metadata(self.codec, self.data, lambda: self.values_count)
        )

    @property
    def values_count(self) -> int:
        """Number of values in `data`."""
        return self.count - len(self.tail)

    def write(self) -> Sequence[bytes | memoryview]:
        return [self.reference, self.support, *_written(self.tail, self.data)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> CodedValues:
        reference, support = bytes(reader.take(DIGEST_BYTES)), bytes(reader.take(DIGEST_BYTES))
        tail, data = _read_values(reader, head.count, head.dtype)
        return cls(head.codec, head.count, reference, support, tail, data)

    def decoded(self, reference: Tensor | None) -> DenseValues | MaskedValues:
        """Decode the values and add the reference [count]. Raises WireError."""
        values = _decoded(self, self.count, reference)
        return DenseValues(values) if self.support == NO_VERSION else MaskedValues(values, self.support)


@final
@dataclass(frozen=True)
class CodedSparse(Part):
    """Values with their own support [count], both encoded by codecs."""

    kind = 6
    codecs = VALUE_CODECS.keys()
    codec: int
    count: int
    """Number of coordinates."""
    reference: bytes
    mask: MaskBits | CodedMask
    tail: Tensor
    data: Tensor
    kept: int | None = None
    """Number of values, so that the mask need not be decoded to count metadata; None: not known. Not sent."""

    @property
    def head(self) -> PartHead:
        return PartHead(self.count, self.tail.dtype, self.codec)

    @property
    def nbytes(self) -> int:
        values = _TAIL_BYTES + self.tail.nbytes + len(self.data)
        return DIGEST_BYTES + _MASK_HEAD_BYTES + self.mask.nbytes + values

    @property
    def metadata_nbytes(self) -> int:
        """Bytes of the support and the heads, and of steps and scales inside the data."""
        heads = DIGEST_BYTES + _MASK_HEAD_BYTES + self.mask.nbytes + _TAIL_BYTES
        return heads + _data_metadata(self.codec, self.data, self._values_count)

    def _values_count(self) -> int:
        """Number of values in `data`. Raises WireError if the mask is damaged."""
        kept = int(self.support().count_nonzero()) if self.kept is None else self.kept
        return max(kept - len(self.tail), 0)

    def write(self) -> Sequence[bytes | memoryview]:
        codec = self.mask.codec if isinstance(self.mask, CodedMask) else 0
        head = [self.reference, bytes([codec]), self.mask.nbytes.to_bytes(8, "little")]
        return [*head, *self.mask.write(), *_written(self.tail, self.data)]

    @classmethod
    def read(cls, head: PartHead, reader: Reader) -> CodedSparse:
        reference = bytes(reader.take(DIGEST_BYTES))
        mask = _read_mask(reader, head.count)
        tail, data = _read_values(reader, head.count, head.dtype)
        return cls(head.codec, head.count, reference, mask, tail, data)

    def support(self) -> Tensor:
        """Decode the mask [count]. Raises WireError."""
        return self.mask.bits if isinstance(self.mask, MaskBits) else self.mask.decoded().bits

    def decoded(self, bits: Tensor, reference: Tensor | None) -> SparseValues:
        """Decode the values on `support()` and add the reference [nnz]. Raises WireError."""
        return SparseValues(_decoded(self, int(bits.count_nonzero()), reference), bits)


PLAIN_PARTS: tuple[type[Part], ...] = (DenseValues, MaskBits, SparseValues, MaskedValues)
"""Part types of version 1, by kind."""
PARTS: tuple[type[Part], ...] = (*PLAIN_PARTS, CodedMask, CodedValues, CodedSparse)
"""Part types of version 2, by kind."""

assert [part.kind for part in PARTS] == list(range(len(PARTS)))


def _decoded(part: CodedValues | CodedSparse, count: int, reference: Tensor | None) -> Tensor:
    """All values [count] of a coded part."""
    head = count - len(part.tail)
    if head < 0:
        raise WireError(f"a tail of {len(part.tail)} values of {count}")
    if reference is not None and len(reference) != count:
        raise WireError(f"{count} values refer to {len(reference)}")
    reader = Reader(raw_bytes(part.data))
    start = None if reference is None else reference[:head]
    values = VALUE_CODECS[part.codec].decode(reader, head, part.tail.dtype, start)
    reader.end()
    return torch.cat([values, part.tail]) if len(part.tail) else values


def _data_metadata(codec: int, data: Tensor, count: Callable[[], int]) -> int:
    try:
        return VALUE_CODECS[codec].metadata_nbytes(Reader(raw_bytes(data)), count)
    except WireError:  # counting must not fail on damaged data; decoding reports it
        return 0


def _written(tail: Tensor, data: Tensor) -> list[bytes | memoryview]:
    return [len(tail).to_bytes(_TAIL_BYTES, "little"), raw_bytes(tail), raw_bytes(data)]


def _read_values(reader: Reader, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    length = reader.number(_TAIL_BYTES)
    if length > most:
        raise WireError(f"a tail of {length} values of at most {most}")
    tail = reader.values(length, dtype)
    return tail, octets(reader.take(reader.left))


def _read_mask(reader: Reader, count: int) -> MaskBits | CodedMask:
    codec, length = reader.number(1), reader.number(8)
    body = Reader(reader.take(length))
    if codec == 0:
        if length != bits_nbytes(count):
            raise WireError(f"{length} bytes of support for {count} coordinates")
        return MaskBits.read(PartHead(count), body)
    if codec not in CodedMask.codecs:
        raise WireError(f"a support in codec {codec} is unknown")
    return CodedMask.read(PartHead(count, codec=codec), body)
