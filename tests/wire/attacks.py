"""Messages that a hostile sender may make, each with the reason why it must be refused.

They lie in tests/golden/hostile_v2 too, as files that keep their bytes; `python -m tests.wire.attacks` writes new ones.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import zstandard

from ssfl.core.layout import Layout
from ssfl.core.payloads import DenseValues, Payload
from ssfl.wire.coding import Coding
from ssfl.wire.entropy import squeezed, squeezed_strings
from ssfl.wire.message import decode
from ssfl.wire.stack import Hop, Received

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "hostile_v2"
LAYOUT = Layout(("a.weight", "a.bias"), ((8, 4), (8,)), (True, False), (True, True))
N, P = 32, 40
NONE = bytes(8)
HEAD = b"SSFL\x02\x01" + bytes(2) + b"\xff\xff\xff\xff" + NONE
ONE = struct.pack("<f", 1.0)
INF, NAN, MINUS, HUGE = (struct.pack("<f", v) for v in (float("inf"), float("nan"), -1.0, 1e20))
BOMB = squeezed_strings(np.zeros(1 << 26, np.uint8))
"""64 MiB of zeros."""


HELD = DenseValues(torch.arange(float(P)))
"""What the receiver of `open_message` holds."""
HOP = Hop("up", 0, "train", 1, 7, LAYOUT, Received([Payload({"w": HELD})], lambda sent: sent))


def open_message(raw: bytes) -> Payload:
    """Everything that a receiver does with bytes before an algorithm sees them."""
    return Coding().receive(decode(raw, LAYOUT), HOP, {})[0]


def signed(body: bytes) -> bytes:
    """With a valid checksum."""
    return body + struct.pack("<I", zlib.crc32(body))


def part(
    kind: int,
    body: bytes,
    count: int = P,
    codec: int = 0,
    dtype: int = 0,
    name: bytes = b"w",
    length: int | None = None,
    name_length: int | None = None,
) -> bytes:
    """One part; lengths may lie."""
    size = len(body) if length is None else length
    named = len(name) if name_length is None else name_length
    return struct.pack("<BBBBIQ", kind, dtype, codec, named, count, size) + name + body


def message(*parts: bytes, head: bytes | None = None) -> bytes:
    """Parts under a good header and checksum."""
    start = HEAD[:5] + bytes([len(parts)]) + HEAD[6:] if head is None else head
    return signed(start + b"".join(parts))


def values(codec: int, data: bytes, count: int = P, reference: bytes = NONE, support: bytes = NONE) -> bytes:
    """Coded values without a tail."""
    return message(part(5, reference + support + bytes(4) + data, count, codec))


def sparse(
    codec: int,
    mask: bytes,
    data: bytes,
    mask_codec: int = 0,
    length: int | None = None,
    reference: bytes = NONE,
) -> bytes:
    """Coded sparse values without a tail."""
    size = len(mask) if length is None else length
    body = reference + bytes([mask_codec]) + size.to_bytes(8, "little") + mask + bytes(4) + data
    return message(part(6, body, P, codec))


def mask(codec: int, body: bytes, count: int = N, dtype: int = 0) -> bytes:
    """A coded mask."""
    return message(part(4, body, count, codec, dtype, b"mask"))


def table(segments: list[tuple[int, int, int]], margins: bytes, number: int | None = None) -> bytes:
    """The table of a sorted mask."""
    count = len(segments) if number is None else number
    return struct.pack("<I", count) + b"".join(struct.pack("<III", *s) for s in segments) + margins


def sorted_body(inner: bytes, bits: bytes = b"\xf0\xf0\xf0\xf0", claimed: int | None = None) -> bytes:
    """A sorted mask from its table."""
    frame = squeezed_strings(inner)
    size = len(inner) if claimed is None else claimed
    return struct.pack("<II", len(frame), size) + frame + squeezed(bits)


def uniform(step: bytes = ONE, count: int = P, size: int = 1, symbols: bytes | None = None) -> bytes:
    """Data of the uniform codec, one segment."""
    raw = bytes(P * size) if symbols is None else symbols
    return struct.pack("<BHI", size, 1, count) + step + squeezed(raw)


def int8(stage: int = 0, block: int = 64, scale: int = 0x3F80, symbols: bytes = bytes(P)) -> bytes:
    """Data of the int8 codec, one block."""
    return struct.pack("<BIH", stage, block, scale) + symbols


def without_size(raw: bytes) -> bytes:
    """A frame that does not state its content's size."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=False)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


def wide_window(size: int) -> bytes:
    """A frame header that wants 1 GiB of window and states `size` bytes of content."""
    return (
        bytes.fromhex("28b52ffd")
        + bytes([0x80, (30 - 10) << 3])
        + size.to_bytes(4, "little")
        + b"\x01\x00\x00"
    )


def with_dictionary(raw: bytes) -> bytes:
    """A frame of one raw block that names a dictionary."""
    head = bytes.fromhex("28b52ffd") + bytes([0x21, 7, len(raw)])
    return head + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


GOOD = values(4, uniform())
DENSE = part(0, bytes(4 * P))


def of_messages() -> Mapping[str, bytes]:
    """Faults of headers, parts and plain bodies."""
    return {
        "empty": b"",
        "short_header": HEAD[:9],
        "header_alone": HEAD,
        "wrong_magic": signed(b"SSFM" + HEAD[4:5] + bytes(1) + HEAD[6:]),
        "version_0": signed(b"SSFL\x00" + HEAD[5:]),
        "version_3": signed(b"SSFL\x03" + HEAD[5:]),
        "wrong_checksum": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
        "reserved_bytes": message(DENSE, head=HEAD[:6] + b"\x01\x00" + HEAD[8:]),
        "another_layout": message(DENSE, head=HEAD[:12] + b"another!"),
        "more_parts_than_claimed": message(DENSE, part(0, b"", 0, name=b"x"), head=HEAD),
        "fewer_parts_than_claimed": message(DENSE, head=HEAD[:5] + b"\x02" + HEAD[6:]),
        "parts_without_bytes": message(head=HEAD[:5] + b"\xff" + HEAD[6:]),
        "duplicate_names": message(DENSE, DENSE),
        "name_not_ascii": message(part(0, bytes(4 * P), name=b"\xc3\xa4")),
        "name_past_the_end": message(part(0, b"", 0, name_length=200)),
        "body_past_the_end": message(part(0, bytes(4 * P), length=4 * P + 1)),
        "body_of_2_64": message(part(0, bytes(4 * P), length=2**64 - 1)),
        "body_longer_than_values": message(part(0, bytes(4 * P + 1))),
        "body_shorter_than_values": message(part(0, bytes(4 * P - 1))),
        "trailing_bytes": signed(GOOD[:-4] + b"x"),
        "truncated": GOOD[:-5],
        "truncated_with_valid_checksum": signed(GOOD[:-9]),
        "count_beyond_the_model": message(part(0, bytes(4 * P + 4), P + 1)),
        "parts_of_255_models": message(
            *(part(5, NONE * 2 + bytes(4) + uniform(), P, 4, name=b"%d" % i) for i in range(255))
        ),
        "count_of_2_31": message(part(0, b"", 2**31)),
        "unknown_kind": message(part(7, b"")),
        "unknown_value_type": message(part(0, bytes(4 * P), dtype=4)),
        "mask_with_value_type": message(part(1, bytes(4), N, dtype=1, name=b"mask")),
        "coded_mask_with_value_type": mask(1, squeezed(bytes(4)), dtype=1),
        "plain_with_codec": message(part(0, bytes(4 * P), codec=1)),
        "dirty_padding_bits": message(part(1, b"\xff", 5, name=b"mask")),
        "dirty_padding_bits_sparse": message(part(2, b"\xff" + bytes(20), 5)),
        "sparse_too_few_values": message(part(2, b"\xff\xff\xff\xff\xff" + bytes(8))),
        "masked_without_digest": message(part(3, bytes(7), 0)),
    }


def of_masks() -> Mapping[str, bytes]:
    """Faults of coded masks."""
    whole = [(8, 4, 1)]
    good = table(whole, bytes(12))
    return {
        "mask_unknown_codec": mask(3, b""),
        "mask_codec_0": mask(0, bytes(4)),
        "mask_of_another_model": mask(1, squeezed(bytes(3)), 17),
        "mask_no_frame": mask(1, b"abcd"),
        "mask_empty": mask(1, b""),
        "mask_bomb": mask(1, BOMB),
        "mask_frame_without_size": mask(1, without_size(bytes(4))),
        "mask_frame_followed_by_bytes": mask(1, squeezed(bytes(4)) + b"x"),
        "mask_two_frames": mask(1, squeezed(bytes(2)) + squeezed(bytes(2))),
        "mask_frame_wide_window": mask(1, wide_window(4)),
        "mask_frame_dictionary": mask(1, with_dictionary(bytes(4))),
        "mask_frame_truncated": mask(1, squeezed(bytes(4))[:-1]),
        "sorted_short": mask(2, b"\x01\x00\x00"),
        "sorted_table_past_the_end": mask(2, struct.pack("<II", 1000, 10) + b"abc"),
        "sorted_table_of_4_gib": mask(2, sorted_body(good, claimed=2**32 - 1)),
        "sorted_table_bomb": mask(2, struct.pack("<II", len(BOMB), 1 << 26) + BOMB),
        "sorted_table_of_wrong_length": mask(2, sorted_body(good, claimed=len(good) + 1)),
        "sorted_no_segments": mask(2, sorted_body(table([], b""))),
        "sorted_many_segments": mask(2, sorted_body(table([], b"", number=2**32 - 1))),
        "sorted_segments_too_small": mask(2, sorted_body(table([(7, 4, 1)], bytes(11)))),
        "sorted_segments_too_large": mask(2, sorted_body(table([(2**31, 2**31, 2**31)], bytes(12)))),
        "sorted_segment_of_nothing": mask(2, sorted_body(table([(8, 4, 1), (0, 4, 1)], bytes(16)))),
        "sorted_too_few_margins": mask(2, sorted_body(table(whole, bytes(11)))),
        "sorted_too_many_margins": mask(2, sorted_body(table(whole, bytes(13)))),
        "sorted_bits_too_few": mask(2, sorted_body(good, b"\xf0")),
        "sorted_bits_bomb": mask(2, sorted_body(good)[: 8 + len(squeezed_strings(good))] + BOMB),
    }


def of_values() -> Mapping[str, bytes]:
    """Faults of coded values and of their codecs."""
    half = struct.pack("<BB", 3, 0)
    return {
        "values_unknown_codec": values(6, b""),
        "values_codec_0": values(0, bytes(4 * P)),
        "values_unknown_reference": values(4, uniform(), reference=b"whatever"),
        "values_on_another_mask": values(4, uniform(), reference=HELD.version, support=b"somemask"),
        "values_fewer_than_the_reference": values(
            4, uniform(count=P - 1, symbols=bytes(P - 1)), P - 1, HELD.version
        ),
        "values_without_head": message(part(5, NONE, P, 4)),
        "tail_longer_than_the_values": message(part(5, NONE * 2 + struct.pack("<I", P + 1), P, 4)),
        "tail_past_the_end": message(part(5, NONE * 2 + struct.pack("<I", P) + bytes(8), P, 4)),
        "tail_of_4_gib": message(part(5, NONE * 2 + struct.pack("<I", 2**32 - 1), P, 4)),
        "lossless_wrong_size": values(1, squeezed(bytes(4 * P - 4))),
        "lossless_bomb": values(1, BOMB),
        "lossless_empty": values(1, b""),
        "half_of_float32": values(2, struct.pack("<BB", 0, 0) + bytes(2 * P)),
        "half_unknown_stage": values(2, struct.pack("<BB", 3, 2) + bytes(2 * P)),
        "half_nan": values(2, half + b"\xc0\x7f" + bytes(2 * P - 2)),
        "half_infinite": values(2, half + b"\x80\x7f" + bytes(2 * P - 2)),
        "half_short": values(2, half + bytes(2 * P - 1)),
        "half_long": values(2, half + bytes(2 * P + 1)),
        "half_bomb": values(2, struct.pack("<BB", 3, 1) + BOMB),
        "int8_unknown_stage": values(3, int8(2)),
        "int8_block_of_0": values(3, int8(block=0)),
        "int8_block_of_2_32": values(3, int8(block=2**32 - 1)),
        "int8_scale_nan": values(3, int8(scale=0x7FC0)),
        "int8_scale_infinite": values(3, int8(scale=0x7F80)),
        "int8_scale_negative": values(3, int8(scale=0xBF80)),
        "int8_scale_huge": values(3, int8(scale=0x7F00)),
        "int8_short": values(3, int8(symbols=bytes(P - 1))),
        "int8_long": values(3, int8(symbols=bytes(P + 1))),
        "int8_bomb": values(3, int8(1, symbols=BOMB)),
        "uniform_short": values(4, b"\x01"),
        "uniform_symbols_of_0_bytes": values(4, uniform(size=0, symbols=b"")),
        "uniform_symbols_of_5_bytes": values(4, uniform(size=5)),
        "uniform_segments_past_the_end": values(4, struct.pack("<BH", 1, 65535)),
        "uniform_counts_too_small": values(4, uniform(count=P - 1)),
        "uniform_counts_too_large": values(4, uniform(count=2**32 - 1)),
        "uniform_step_nan": values(4, uniform(NAN)),
        "uniform_step_infinite": values(4, uniform(INF)),
        "uniform_step_negative": values(4, uniform(MINUS)),
        "uniform_step_huge": values(4, uniform(HUGE)),
        "uniform_too_few_symbols": values(4, uniform(symbols=bytes(P - 1))),
        "uniform_too_many_symbols": values(4, uniform(symbols=bytes(P + 1))),
        "uniform_symbol_of_32_bits": values(
            4, uniform(size=4, symbols=b"\xfe" + bytes(P - 1) + b"\xff" * 3 * P)
        ),
        "uniform_symbol_of_minus_2_31": values(
            4, uniform(size=4, symbols=b"".join(b"\xff" + bytes(P - 1) for _ in range(4)))
        ),
        "uniform_bomb": values(4, struct.pack("<BHI", 1, 1, P) + ONE + BOMB),
        "log_short": values(5, ONE),
        "log_largest_nan": values(5, NAN + b"\x08" + squeezed(bytes(P))),
        "log_largest_infinite": values(5, INF + b"\x08" + squeezed(bytes(P))),
        "log_largest_negative": values(5, MINUS + b"\x08" + squeezed(bytes(P))),
        "log_octave_of_0": values(5, ONE + b"\x00" + squeezed(bytes(P))),
        "log_too_few_symbols": values(5, ONE + b"\x08" + squeezed(bytes(P - 1))),
        "log_bomb": values(5, ONE + b"\x08" + BOMB),
    }


def of_sparse_values() -> Mapping[str, bytes]:
    """Faults of coded sparse values."""
    full = b"\xff" * 5
    return {
        "sparse_unknown_mask_codec": sparse(3, full, int8(), 3),
        "sparse_mask_past_the_end": sparse(3, full, int8(), length=10_000),
        "sparse_mask_of_2_64": sparse(3, full, int8(), length=2**64 - 1),
        "sparse_bitmap_too_short": sparse(3, full[:-1], int8()),
        "sparse_bitmap_too_long": sparse(3, full + b"\x00", int8()),
        "sparse_mask_bomb": sparse(3, BOMB, int8(), 1),
        "sparse_mask_truncated": sparse(3, squeezed(full)[:-1], int8(), 1),
        "sparse_more_values_than_the_mask": sparse(3, b"\xff" * 4 + b"\x00", int8()),
        "sparse_fewer_values_than_the_mask": sparse(3, full, int8(symbols=bytes(P - 1))),
        "sparse_unknown_codec": sparse(9, full, int8()),
    }


def attacks() -> Iterator[tuple[str, bytes]]:
    """Every attack by name."""
    for group in (of_messages(), of_masks(), of_values(), of_sparse_values()):
        yield from group.items()


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for attack, content in attacks():
        (FOLDER / f"{attack}.bin").write_bytes(content)
