"""Payload -> bytes -> payload (docs/wire-format.md). Writes version 2, reads versions 1 and 2.

Received bytes are not trusted: every length is checked before it is used. Coded parts are not decompressed here.
"""

from __future__ import annotations

import struct
import zlib

from ssfl.core.layout import Layout
from ssfl.core.payloads import (
    CHECKSUM_BYTES,
    DIGEST_BYTES,
    HEADER_BYTES,
    PART_HEADER_BYTES,
    Part,
    PartHead,
    Payload,
)
from ssfl.core.reading import VALUE_TYPES, Reader, WireError
from ssfl.wire.parts import PARTS, PLAIN_PARTS

MAGIC = b"SSFL"
VERSION = 2
MAX_COUNT = (1 << 31) - 1
MAX_MODELS = 8
"""The parts of a message together have at most this many times the coordinates of the receiver's model."""
NO_DIGEST = bytes(DIGEST_BYTES)
_HEADER = struct.Struct("<4sBBHi8s")  # magic, version, number of parts, reserved, sender, layout
_PART = struct.Struct("<BBBBIQ")  # kind, value type, codec, length of the name, count, length of the body
_HEADER_1 = struct.Struct("<4sBBi")
_PART_1 = struct.Struct("<BBBI")
_LEAST_BYTES = _HEADER_1.size + CHECKSUM_BYTES

assert _HEADER.size == HEADER_BYTES
assert _PART.size == PART_HEADER_BYTES


def encode(payload: Payload, layout: Layout | None = None) -> bytes:
    """Encode a payload, with the digest of `layout` if given. `len(encode(p)) == nbytes(p)`."""
    digest = NO_DIGEST if layout is None else layout.digest
    pieces: list[bytes | memoryview] = [
        _HEADER.pack(MAGIC, VERSION, len(payload.parts), 0, payload.sender, digest)
    ]
    for name, part in payload.parts.items():
        head, raw_name = part.head, name.encode("ascii")
        dtype = VALUE_TYPES.index(head.dtype)
        pieces.append(_PART.pack(part.kind, dtype, head.codec, len(raw_name), head.count, part.nbytes))
        pieces += [raw_name, *part.write()]
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return b"".join([*pieces, struct.pack("<I", checksum)])


def decode(raw: bytes | memoryview, layout: Layout | None = None) -> Payload:
    """Decode a message. Raises WireError; allocates no more than the message's size, and one byte per mask bit.

    layout: the receiver's model; messages for another layout, or with more coordinates, are refused. The parts of an
    accepted message decode to at most `MAX_MODELS` models.
    """
    raw = memoryview(raw)
    if len(raw) < _LEAST_BYTES:
        raise WireError(f"{len(raw)} bytes are too few for a message")
    if raw[:4] != MAGIC:
        raise WireError("the bytes do not begin with the magic of a message")
    if raw[4] not in (1, VERSION):
        raise WireError(
            f"message format {raw[4]} is not supported (supported: 1 and {VERSION}): update the older side"
        )
    (checksum,) = struct.unpack_from("<I", raw, len(raw) - CHECKSUM_BYTES)
    body = raw[: len(raw) - CHECKSUM_BYTES]
    if zlib.crc32(body) != checksum:
        raise WireError("the message is damaged (its checksum is wrong)")
    limit = MAX_COUNT if layout is None else layout.size
    reader = Reader(body)
    if raw[4] == 1:
        _, _, count, sender = _HEADER_1.unpack(reader.take(_HEADER_1.size))
    else:
        _, _, count, reserved, sender, digest = _HEADER.unpack(reader.take(_HEADER.size))
        if reserved:
            raise WireError("the reserved bytes are not zero")
        _check_layout(digest, layout)
    read = _read_part_1 if raw[4] == 1 else _read_part
    parts: dict[str, Part] = {}
    total = 0
    for _ in range(count):
        name, part = read(reader, limit)
        if name in parts:
            raise WireError(f"two parts are named {name!r}")
        parts[name] = part
        total += part.head.count
        if layout is not None and total > MAX_MODELS * layout.size:
            raise WireError(
                f"parts of {total} coordinates together; at most {MAX_MODELS * layout.size} are read"
            )
    reader.end()
    return Payload(parts, sender)


def _check_layout(digest: bytes, layout: Layout | None) -> None:
    if layout is not None and digest not in (NO_DIGEST, layout.digest):
        raise WireError(
            f"the message is for a model with layout {digest.hex()}, this side has {layout.digest.hex()}: "
            "both sides must build the same network"
        )


def _read_part(reader: Reader, limit: int) -> tuple[str, Part]:
    kind, dtype, codec, name_length, count, length = _PART.unpack(reader.take(_PART.size))
    part = _part_type(kind, dtype, PARTS)
    if codec not in part.codecs:
        raise WireError(f"part kind {kind} with codec {codec} is unknown")
    _check_count(count, limit)
    name = _name(reader, name_length)
    body = Reader(reader.take(length))
    made = part.read(PartHead(count, VALUE_TYPES[dtype], codec), body)
    body.end()
    return name, made


def _read_part_1(reader: Reader, limit: int) -> tuple[str, Part]:
    kind, dtype, name_length, count = _PART_1.unpack(reader.take(_PART_1.size))
    part = _part_type(kind, dtype, PLAIN_PARTS)
    _check_count(count, limit)
    name = _name(reader, name_length)
    return name, part.read(PartHead(count, VALUE_TYPES[dtype]), reader)


def _part_type(kind: int, dtype: int, known: tuple[type[Part], ...]) -> type[Part]:
    if kind >= len(known) or dtype >= (len(VALUE_TYPES) if known[kind].has_values else 1):
        raise WireError(f"part kind {kind} with value type {dtype} is unknown")
    return known[kind]


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise WireError(f"a part of {count} coordinates; at most {limit} are read")


def _name(reader: Reader, length: int) -> str:
    try:
        return bytes(reader.take(length)).decode("ascii")
    except UnicodeDecodeError:
        raise WireError("a part's name is not ASCII") from None
