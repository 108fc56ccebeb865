"""Payload -> bytes -> payload. Bytes from the network are hostile: every length is checked before it is used."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

from ssfl.core.payloads import (
    CHECKSUM_BYTES,
    DIGEST_BYTES,
    HEADER_BYTES,
    PART_HEADER_BYTES,
    DenseValues,
    MaskBits,
    MaskedValues,
    Part,
    Payload,
    SparseValues,
    bits_nbytes,
)

MAGIC = b"SSFL"
VERSION = 1
_HEADER = struct.Struct("<4sBBi")  # magic, version, number of parts, sender
_PART = struct.Struct("<BBBI")  # kind, value type, length of the name, count
_KINDS: tuple[type[Part], ...] = (DenseValues, MaskBits, SparseValues, MaskedValues)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ITEM_BYTES = (4, 8, 2, 2)
MAX_COORDINATES = 1 << 31

assert _HEADER.size == HEADER_BYTES
assert _PART.size == PART_HEADER_BYTES


class CodecError(ValueError):
    """Bytes that are no payload: truncated, damaged, of another version, or lying about their lengths."""


def encode(payload: Payload) -> bytes:
    """The payload's bytes, `docs/wire-format.md`; `len(encode(p)) == nbytes(p)`."""
    out = [_HEADER.pack(MAGIC, VERSION, len(payload.parts), payload.sender)]
    for name, part in payload.parts.items():
        raw_name = name.encode("ascii")
        dtype = 0 if isinstance(part, MaskBits) else _DTYPES.index(part.values.dtype)
        kind = _KINDS.index(type(part))
        count = part.bits.numel() if isinstance(part, (MaskBits, SparseValues)) else part.values.numel()
        out += [_PART.pack(kind, dtype, len(raw_name), count), raw_name, *_body(part)]
    raw = b"".join(out)
    return raw + struct.pack("<I", zlib.crc32(raw))


def decode(raw: bytes | memoryview) -> Payload:
    """The payload of `encode`d bytes. Raises CodecError; never allocates more than the bytes can fill."""
    raw = memoryview(raw)
    if len(raw) < HEADER_BYTES + CHECKSUM_BYTES:
        raise CodecError(f"{len(raw)} bytes are too few for a payload")
    magic, version, parts_left, sender = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise CodecError("these bytes do not begin like a payload")
    if version != VERSION:
        raise CodecError(f"payload format {version}, this program reads {VERSION}: update the older side")
    (checksum,) = struct.unpack_from("<I", raw, len(raw) - CHECKSUM_BYTES)
    body = raw[: len(raw) - CHECKSUM_BYTES]
    if zlib.crc32(body) != checksum:
        raise CodecError("the payload was damaged on its way (checksum)")
    reader = _Reader(body, HEADER_BYTES)
    parts: dict[str, Part] = {}
    for _ in range(parts_left):
        name, part = _read_part(reader)
        if name in parts:
            raise CodecError(f"two parts are named {name!r}")
        parts[name] = part
    if reader.at != len(body):
        raise CodecError(f"{len(body) - reader.at} bytes follow the last part")
    return Payload(parts, sender)


class _Reader:
    """A position in a buffer that refuses to pass its end."""

    def __init__(self, raw: memoryview, at: int) -> None:
        self.raw, self.at = raw, at

    def take(self, count: int) -> memoryview:
        if count > len(self.raw) - self.at:
            raise CodecError(f"a part claims {count} bytes where {len(self.raw) - self.at} are left")
        self.at += count
        return self.raw[self.at - count : self.at]

    def values(self, count: int, dtype: int) -> Tensor:
        raw = bytearray(self.take(count * _ITEM_BYTES[dtype]))
        return torch.frombuffer(raw, dtype=_DTYPES[dtype]) if count else torch.empty(0, dtype=_DTYPES[dtype])

    def bits(self, count: int) -> Tensor:
        packed = np.frombuffer(self.take(bits_nbytes(count)), np.uint8)
        if count % 8 and packed[-1] & ((1 << (8 - count % 8)) - 1):
            raise CodecError("the unused bits of a mask's last byte are not zero")
        return torch.from_numpy(np.unpackbits(packed, count=count).view(np.bool_))


def _read_part(reader: _Reader) -> tuple[str, Part]:
    kind, dtype, name_length, count = _PART.unpack(reader.take(PART_HEADER_BYTES))
    typeless = kind == _KINDS.index(MaskBits)  # bits have no value type: the field is 0, one encoding only
    if kind >= len(_KINDS) or dtype >= (1 if typeless else len(_DTYPES)):
        raise CodecError(f"part kind {kind} with value type {dtype} is unknown")
    if count > MAX_COORDINATES:
        raise CodecError(f"a part of {count} coordinates; at most {MAX_COORDINATES} are read")
    try:
        name = bytes(reader.take(name_length)).decode("ascii")
    except UnicodeDecodeError as error:
        raise CodecError("a part's name is not ASCII") from error
    if kind == 0:
        return name, DenseValues(reader.values(count, dtype))
    if kind == 1:
        return name, MaskBits(reader.bits(count))
    if kind == 2:
        bits = reader.bits(count)
        return name, SparseValues(reader.values(int(bits.count_nonzero()), dtype), bits)
    digest = bytes(reader.take(DIGEST_BYTES))
    return name, MaskedValues(reader.values(count, dtype), digest)


def _body(part: Part) -> list[bytes]:
    if isinstance(part, MaskBits):
        return [_packed(part.bits)]
    if isinstance(part, SparseValues):
        return [_packed(part.bits), _raw(part.values)]
    if isinstance(part, MaskedValues):
        return [part.support, _raw(part.values)]
    return [_raw(part.values)]


def _packed(bits: Tensor) -> bytes:
    return np.packbits(bits.detach().cpu().numpy()).tobytes()


def _raw(values: Tensor) -> bytes:
    flat = values.detach().cpu().contiguous()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
