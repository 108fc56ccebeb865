"""Messages: golden bytes of both versions, round trips, and bytes that are no message."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import (
    SERVER,
    DenseValues,
    MaskBits,
    MaskedValues,
    Part,
    Payload,
    SparseValues,
    Support,
    dense_values,
    digest_of_bits,
    metadata_nbytes,
    nbytes,
    pack_sparse,
)
from ssfl.core.reading import WireError, octets
from ssfl.wire.mask_codec import PACKED, SORTED
from ssfl.wire.message import decode, encode
from ssfl.wire.parts import PARTS, CodedMask, CodedSparse, CodedValues
from tests.support.refusals import refusal

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
HOSTILE_1 = sorted((GOLDEN / "hostile_v1").glob("*.bin"))
BITS = torch.tensor([True, False, True, True, False, False, False, False, True, True])
DIGEST = bytes(range(8))
NONE = bytes(8)
HEAD = "5353464c 02 01 0000 ffffffff 0000000000000000"


def frame(content: str) -> str:
    """A zstd frame with one raw block, by hand from RFC 8878: magic, single segment with a 1-byte size, block."""
    size = len(bytes.fromhex(content.replace(" ", "")))
    block = (size << 3 | 1).to_bytes(3, "little").hex()
    return f"28b52ffd 20 {size:02x} {block} {content}"


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def length_8(text: str) -> str:
    return len(raw(text)).to_bytes(8, "little").hex()


def length(text: str) -> str:
    return len(raw(text)).to_bytes(4, "little").hex()


EMPTY = torch.empty(0)
HALVES = "03 00 803f 20c0"
INT8 = "00 02000000 803f 0040 7f ff 02"
UNIFORM = "01 0200 01000000 0000003f 02000000 0000803e" + frame("02 01 06")
LOSSLESS = frame("02 01 00 00 00 00 00 00")
LOG = "00002041 02" + frame("01 00 03")
LOG_1 = "00002041 02" + frame("03")
PACKED_MASK = frame("b0 c0")
# One segment of 2 x 5 kernels of size 1; the second row is denser, columns 4 and 5 of equal odds come last.
SORTED_TABLE = "01000000 02000000 05000000 01000000 78 80 80 80 80 88 88"
# Further stages and sizes: bytes in planes, the lowest byte of every item first.
HALVES_ZSTD = "03 01" + frame("80 20 3f c0")
INT8_ZSTD = "01 02000000 803f 0040" + frame("7f ff 02")
UNIFORM_2_BYTES = "02 0100 02000000 0000003f" + frame("58 01 02 00")
UNIFORM_3_BYTES = "03 0100 02000000 0000003f" + frame("80 01 96 00 98 00")
UNIFORM_4_BYTES = "04 0100 01000000 0000803f" + frame("00 00 00 80")
HALVES_5 = "02 00 003c 0040 0042 0044 0045"
UNIFORM_5 = "01 0100 05000000 0000803f" + frame("02 04 06 08 0a")
LOSSLESS_3 = frame("02 01 04 00 00 00 00 00 00 00 00 00")
SORTED_MASK = length(frame(SORTED_TABLE)) + length(SORTED_TABLE) + frame(SORTED_TABLE) + frame("b0 c0")

OF_PACKED = CodedMask(PACKED, 10, octets(raw(PACKED_MASK)))
OF_SORTED = CodedMask(SORTED, 10, octets(raw(SORTED_MASK)))

# Version 1, written by hand from docs/wire-format.md: header, part header, name, body; the checksum follows.
GOLDEN_1: dict[str, tuple[Payload, str]] = {
    "empty_acknowledgement": (Payload({}, 7), "5353464c 01 00 07000000"),
    "dense_float32": (
        Payload({"w": DenseValues(torch.tensor([1.0, -2.5]))}),
        "5353464c 01 01 ffffffff  00 00 01 02000000 77  0000803f 000020c0",
    ),
    "dense_float64": (
        Payload({"w": DenseValues(torch.tensor([1.0], dtype=torch.float64))}, 3),
        "5353464c 01 01 03000000  00 01 01 01000000 77  000000000000f03f",
    ),
    "dense_half_types": (
        Payload(
            {
                "h": DenseValues(torch.tensor([1.0], dtype=torch.float16)),
                "b": DenseValues(torch.tensor([1.0], dtype=torch.bfloat16)),
            }
        ),
        "5353464c 01 02 ffffffff  00 02 01 01000000 68 003c  00 03 01 01000000 62 803f",
    ),
    "mask_bits": (
        Payload({"mask": MaskBits(BITS)}),
        "5353464c 01 01 ffffffff  01 00 04 0a000000 6d61736b  b0 c0",
    ),
    "sparse_values": (
        Payload({"w": SparseValues(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), BITS)}, 2),
        "5353464c 01 01 02000000  02 00 01 0a000000 77  b0 c0  0000803f 00000040 00004040 00008040 0000a040",
    ),
    "masked_values": (
        Payload({"w": MaskedValues(torch.tensor([0.5]), DIGEST)}, 0),
        "5353464c 01 01 00000000  03 00 01 01000000 77  0001020304050607  0000003f",
    ),
}


def part_2(kind: int, codec: int, count: int, body: str, name: str = "77", dtype: int = 0) -> str:
    """A part of version 2: kind, value type, codec, length of the name, count, length of the body, name, body."""
    head = bytes([kind, dtype, codec, len(raw(name))]) + struct.pack("<IQ", count, len(raw(body)))
    return f"{head.hex()} {name} {body}"


GOLDEN_2: dict[str, tuple[Payload, str]] = {
    "empty_acknowledgement": (Payload({}, 7), "5353464c 02 00 0000 07000000 0000000000000000"),
    "dense_float32": (
        Payload({"w": DenseValues(torch.tensor([1.0, -2.5]))}),
        HEAD + "00 00 00 01 02000000 0800000000000000 77  0000803f 000020c0",
    ),
    "dense_half_types": (
        Payload(
            {
                "h": DenseValues(torch.tensor([1.0], dtype=torch.float16)),
                "b": DenseValues(torch.tensor([1.0], dtype=torch.bfloat16)),
            },
            9,
        ),
        "5353464c 02 02 0000 09000000 0000000000000000"
        "00 02 00 01 01000000 0200000000000000 68 003c  00 03 00 01 01000000 0200000000000000 62 803f",
    ),
    "mask_bits": (
        Payload({"mask": MaskBits(BITS)}),
        HEAD + "01 00 00 04 0a000000 0200000000000000 6d61736b b0 c0",
    ),
    "sparse_values": (
        Payload({"w": SparseValues(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), BITS)}),
        HEAD
        + "02 00 00 01 0a000000 1600000000000000 77 b0 c0"
        + "0000803f 00000040 00004040 00008040 0000a040",
    ),
    "masked_values": (
        Payload({"w": MaskedValues(torch.tensor([0.5]), DIGEST)}),
        HEAD + "03 00 00 01 01000000 0c00000000000000 77 0001020304050607 0000003f",
    ),
    "coded_mask_packed": (
        Payload({"mask": CodedMask(PACKED, 10, octets(raw(PACKED_MASK)))}),
        HEAD + part_2(4, 1, 10, PACKED_MASK, "6d61736b"),
    ),
    "coded_mask_sorted": (
        Payload({"mask": CodedMask(SORTED, 10, octets(raw(SORTED_MASK)))}),
        HEAD + part_2(4, 2, 10, SORTED_MASK, "6d61736b"),
    ),
    "coded_values_lossless": (
        Payload({"w": CodedValues(1, 2, NONE, NONE, EMPTY, octets(raw(LOSSLESS)))}),
        HEAD + part_2(5, 1, 2, NONE.hex() + NONE.hex() + "00000000" + LOSSLESS),
    ),
    "coded_values_half": (
        Payload({"w": CodedValues(2, 2, DIGEST, NONE, EMPTY, octets(raw(HALVES)))}),
        HEAD + part_2(5, 2, 2, DIGEST.hex() + NONE.hex() + "00000000" + HALVES),
    ),
    "coded_values_int8": (
        Payload({"w": CodedValues(3, 4, NONE, DIGEST, torch.tensor([9.0]), octets(raw(INT8)))}),
        HEAD + part_2(5, 3, 4, NONE.hex() + DIGEST.hex() + "01000000 00001041" + INT8),
    ),
    "coded_values_uniform": (
        Payload({"w": CodedValues(4, 3, NONE, NONE, EMPTY, octets(raw(UNIFORM)))}),
        HEAD + part_2(5, 4, 3, NONE.hex() + NONE.hex() + "00000000" + UNIFORM),
    ),
    "coded_values_log": (
        Payload({"scores": CodedValues(5, 3, NONE, NONE, EMPTY, octets(raw(LOG)))}),
        HEAD + part_2(5, 5, 3, NONE.hex() + NONE.hex() + "00000000" + LOG, "73636f726573"),
    ),
    "coded_sparse_values": (
        Payload({"w": CodedSparse(3, 4, NONE, MaskBits(BITS[:4]), EMPTY, octets(raw(INT8)))}),
        HEAD + part_2(6, 3, 4, NONE.hex() + "00 0100000000000000 b0 00000000" + INT8),
    ),
    **{
        f"coded_values_{name}": (
            Payload({"w": CodedValues(codec, count, NONE, NONE, EMPTY, octets(raw(data)))}),
            HEAD + part_2(5, codec, count, NONE.hex() + NONE.hex() + "00000000" + data),
        )
        for name, codec, count, data in (
            ("half_zstd", 2, 2, HALVES_ZSTD),
            ("int8_zstd", 3, 3, INT8_ZSTD),
            ("uniform_2_bytes", 4, 2, UNIFORM_2_BYTES),
            ("uniform_3_bytes", 4, 2, UNIFORM_3_BYTES),
            ("uniform_4_bytes", 4, 1, UNIFORM_4_BYTES),
        )
    },
    "coded_sparse_lossless": (
        Payload({"w": CodedSparse(1, 4, NONE, MaskBits(BITS[:4]), EMPTY, octets(raw(LOSSLESS_3)))}),
        HEAD + part_2(6, 1, 4, NONE.hex() + "00 0100000000000000 b0 00000000" + LOSSLESS_3),
    ),
    "coded_sparse_half_packed": (
        Payload({"w": CodedSparse(2, 10, DIGEST, OF_PACKED, EMPTY, octets(raw(HALVES_5)))}),
        HEAD
        + part_2(6, 2, 10, DIGEST.hex() + "01" + length_8(PACKED_MASK) + PACKED_MASK + "00000000" + HALVES_5),
    ),
    "coded_sparse_uniform_sorted": (
        Payload({"w": CodedSparse(4, 10, NONE, OF_SORTED, EMPTY, octets(raw(UNIFORM_5)))}),
        HEAD
        + part_2(6, 4, 10, NONE.hex() + "02" + length_8(SORTED_MASK) + SORTED_MASK + "00000000" + UNIFORM_5),
    ),
    "coded_sparse_log_tail": (
        Payload({"w": CodedSparse(5, 5, NONE, MaskBits(BITS[-5:]), torch.tensor([9.0]), octets(raw(LOG_1)))}),
        HEAD + part_2(6, 5, 5, NONE.hex() + "00 0100000000000000 18 01000000 00001041" + LOG_1),
    ),
}
VERSIONS = {1: GOLDEN_1, 2: GOLDEN_2}
EVERY_GOLDEN = [(version, name) for version, table in VERSIONS.items() for name in table]


def signed(body: bytes) -> bytes:
    """A body with a valid checksum: zlib's CRC-32, little endian."""
    return body + struct.pack("<I", zlib.crc32(body))


def same(a: Payload, b: Payload) -> bool:
    """Equal to the last bit, in the same order."""
    return (
        a.sender == b.sender
        and list(a.parts) == list(b.parts)
        and all(type(p) is type(b.parts[n]) and fields(p) == fields(b.parts[n]) for n, p in a.parts.items())
    )


def fields(part: Part) -> list[object]:
    found: list[object] = []
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            bits = value.contiguous().view(torch.uint8).tolist() if value.numel() else []
            found += [name, value.dtype, tuple(value.shape), bits]
        elif isinstance(value, Part):
            found += [name, *fields(value)]
        else:
            found += [name, value]
    return found


@pytest.mark.parametrize(("version", "name"), EVERY_GOLDEN)
def test_golden_bytes_are_read(version: int, name: str) -> None:
    payload, text = VERSIONS[version][name]
    expected = signed(raw(text))
    assert (GOLDEN / f"v{version}" / f"{name}.bin").read_bytes() == expected
    assert same(decode(expected), payload)


@pytest.mark.parametrize("name", GOLDEN_2)
def test_golden_bytes_are_written(name: str) -> None:
    payload, text = GOLDEN_2[name]
    assert encode(payload) == signed(raw(text))
    assert nbytes(payload) == len(raw(text)) + 4


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_and_table_are_the_same(version: int) -> None:
    assert {p.stem for p in (GOLDEN / f"v{version}").glob("*.bin")} == set(VERSIONS[version])


def test_every_kind_and_codec_has_golden_bytes() -> None:
    seen = {(type(p), p.head.codec) for payload, _ in GOLDEN_2.values() for p in payload.parts.values()}
    assert seen == {(kind, codec) for kind in PARTS for codec in kind.codecs}


def decoded(name: str, reference: Tensor | None = None) -> Tensor:
    (part,) = GOLDEN_2[name][0].parts.values()
    if isinstance(part, CodedMask):
        return part.decoded().bits
    assert isinstance(part, CodedValues)
    return part.decoded(reference).values


def test_golden_bytes_hold_these_values() -> None:
    """Computed by hand from the page."""
    assert decoded("coded_mask_packed").equal(BITS)
    # Kernels in order of the sums: row 0 has columns 1-3 (248), then row 0 columns 4, 5 and row 1 columns 1-3
    # (all 256), then row 1 columns 4, 5 (264): positions 0 1 2 | 3 4 5 6 7 | 8 9.
    assert decoded("coded_mask_sorted").equal(BITS)
    # Zigzag 2 and 1 are +1 and -1 above and below 0.0 in the order of floats: the least subnormal, and -0.0.
    assert decoded("coded_values_lossless").view(torch.int32).tolist() == [1, -(2**31)]
    assert decoded("coded_values_half", torch.tensor([0.5, 0.25])).tolist() == [1.5, -2.25]
    # Blocks of 2 with scales 1 and 2: 127 * 1, -1 * 1, 2 * 2, and a tail of 9.
    assert decoded("coded_values_int8").tolist() == [127.0, -1.0, 4.0, 9.0]
    # Zigzag 2, 1, 6 are 1, -1, 3; steps 0.5 and 0.25.
    assert decoded("coded_values_uniform").tolist() == [0.5, -0.25, 0.75]
    # 10 * 2^0, 0, 10 * 2^-1.
    assert decoded("coded_values_log").tolist() == [10.0, 0.0, 5.0]
    (sparse,) = GOLDEN_2["coded_sparse_values"][0].parts.values()
    assert isinstance(sparse, CodedSparse)
    assert sparse.decoded(sparse.support(), None).values.tolist() == [127.0, -1.0, 4.0]


def sparse_values(name: str, reference: Tensor | None = None) -> tuple[list[bool], list[float]]:
    (part,) = GOLDEN_2[name][0].parts.values()
    assert isinstance(part, CodedSparse)
    bits = part.support()
    return bits.tolist(), part.decoded(bits, reference).values.tolist()


def test_golden_bytes_of_other_stages_and_sizes_hold_these_values() -> None:
    """Computed by hand from the page."""
    assert decoded("coded_values_half_zstd").tolist() == [1.0, -2.5]
    assert decoded("coded_values_int8_zstd").tolist() == [127.0, -1.0, 4.0]
    # Zigzag 0x0258 and 1 are 300 and -1; 0x989680 and 1 are 5,000,000 and -1; 2^31 is 2^30; steps 0.5 and 1.
    assert decoded("coded_values_uniform_2_bytes").tolist() == [150.0, -0.5]
    assert decoded("coded_values_uniform_3_bytes").tolist() == [2_500_000.0, -0.5]
    assert decoded("coded_values_uniform_4_bytes").tolist() == [2.0**30]
    assert sparse_values("coded_sparse_half_packed", torch.full((5,), 10.0)) == (
        BITS.tolist(),
        [11, 12, 13, 14, 15],
    )
    assert sparse_values("coded_sparse_uniform_sorted") == (BITS.tolist(), [1.0, 2.0, 3.0, 4.0, 5.0])
    # The least subnormal, -0.0 and the second subnormal.
    bits, values = sparse_values("coded_sparse_lossless")
    assert bits == BITS[:4].tolist()
    assert values == [2.0**-149, 0.0, 2.0**-148]
    # 10 * 2^-1, then the tail.
    assert sparse_values("coded_sparse_log_tail") == (BITS[-5:].tolist(), [5.0, 9.0])


def test_a_sorted_mask_in_another_order() -> None:
    """Rows with odds 10 and 0, columns with odds 0, 5: sorted (1,0), (1,1), (0,0), (0,1)."""
    table = raw("01000000 02000000 02000000 01000000 0a 00 00 05")
    coded = octets(raw(length(frame(table.hex())) + length(table.hex()) + frame(table.hex()) + frame("80")))
    assert CodedMask(SORTED, 4, coded).decoded().bits.tolist() == [False, False, True, False]


@pytest.mark.parametrize("path", HOSTILE_1, ids=lambda p: p.stem)
def test_hostile_files_of_version_1_are_refused_in_one_line(path: Path) -> None:
    refusal(lambda: decode(path.read_bytes()))


def test_there_are_hostile_files() -> None:
    assert len(HOSTILE_1) >= 14


def test_metadata_is_what_is_no_content() -> None:
    """24 bytes of header and checksum, 16 + 1 of the part; 8 of the digest."""
    dense, masked = DenseValues(torch.zeros(5)), MaskedValues(torch.zeros(5), DIGEST)
    assert metadata_nbytes(Payload({"w": dense})) == 24 + 17 == nbytes(Payload({"w": dense})) - 20
    assert metadata_nbytes(Payload({"w": masked})) == 24 + 17 + 8
    (uniform,) = GOLDEN_2["coded_values_uniform"][0].parts.values()
    assert uniform.metadata_nbytes == 16 + 4 + 3 + 2 * 8
    (int8,) = GOLDEN_2["coded_values_int8"][0].parts.values()
    assert int8.metadata_nbytes == 16 + 4 + 5 + 2 * 2
    assert uniform.nbytes - uniform.metadata_nbytes == len(raw(frame("02 01 06")))


dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
numbers = st.lists(st.floats(width=16, allow_nan=True), max_size=20)
values = st.builds(lambda v, d: torch.tensor(v, dtype=d), numbers, dtypes)
bits = st.lists(st.booleans(), max_size=30).map(lambda b: torch.tensor(b, dtype=torch.bool))
names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", max_size=12)
eight = st.binary(min_size=8, max_size=8)
codes = st.integers(1, 5)
binary = st.binary(max_size=20).map(octets)


@st.composite
def sparse(draw: st.DrawFn) -> SparseValues:
    support = draw(bits)
    count = int(support.sum())
    numbers = draw(st.lists(st.floats(width=16), min_size=count, max_size=count))
    return SparseValues(torch.tensor(numbers, dtype=draw(dtypes)), support)


@st.composite
def coded_values(draw: st.DrawFn) -> CodedValues:
    tail = draw(values)
    count = len(tail) + draw(st.integers(0, 100))
    return CodedValues(draw(codes), count, draw(eight), draw(eight), tail, draw(binary))


@st.composite
def coded_sparse(draw: st.DrawFn) -> CodedSparse:
    support, tail = draw(bits), draw(values)
    count = len(support) + len(tail)
    plain = MaskBits(torch.cat([support, torch.ones(len(tail), dtype=torch.bool)]))
    forms: list[MaskBits | CodedMask] = [
        plain,
        CodedMask(draw(st.sampled_from([1, 2])), count, octets(b"abc")),
    ]
    mask = draw(st.sampled_from(forms))
    return CodedSparse(draw(codes), count, draw(eight), mask, tail, draw(binary))


parts = st.one_of(
    values.map(DenseValues),
    bits.map(MaskBits),
    sparse(),
    st.builds(MaskedValues, values, eight),
    st.builds(CodedMask, st.sampled_from([1, 2]), st.integers(0, 2**31 - 1), binary),
    coded_values(),
    coded_sparse(),
)
payloads = st.builds(Payload, st.dictionaries(names, parts, max_size=4), st.integers(SERVER, 2**31 - 1))


@given(payloads)
def test_round_trip(payload: Payload) -> None:
    message = encode(payload)
    assert len(message) == nbytes(payload)
    assert same(decode(message), payload)
    assert same(decode(memoryview(message)), payload)


@given(parts)
def test_a_part_says_its_length_and_what_of_it_is_metadata(part: Part) -> None:
    assert sum(len(piece) for piece in part.write()) == part.nbytes
    assert part.metadata_nbytes >= 0
    if not isinstance(part, (CodedValues, CodedSparse)):
        assert part.metadata_nbytes <= part.nbytes


@given(st.binary(max_size=80))
@example(b"")
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    only_wire_errors(message)


@given(st.binary(max_size=80), st.integers(0, 255), st.integers(1, 2))
def test_any_body_under_a_valid_checksum_is_read_or_refused(body: bytes, count: int, version: int) -> None:
    rest = b"\xff\xff\xff\xff" if version == 1 else bytes(2) + b"\xff\xff\xff\xff" + bytes(8)
    only_wire_errors(signed(b"SSFL" + bytes([version, count]) + rest + body))


@given(payloads, st.data())
def test_damage_is_found_or_refused(payload: Payload, data: st.DataObject) -> None:
    """One changed byte is always found; with the checksum made good, reading still ends in a payload or an error."""
    message = bytearray(encode(payload))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        decode(bytes(message))
    only_wire_errors(signed(bytes(message[:-4])))


@given(payloads, st.integers(1, 200))
def test_every_truncation_is_refused(payload: Payload, cut: int) -> None:
    message = encode(payload)
    with pytest.raises(WireError):
        decode(message[: max(0, len(message) - cut)])


def only_wire_errors(message: bytes) -> None:
    try:
        payload = decode(message)
    except WireError:
        return
    if message[4] == 2:
        states = message[12:20]
        assert encode(payload)[20:-4] == message[20:-4]
        assert len(states) == 8


def test_decoding_leaves_the_callers_bytes_alone() -> None:
    message = bytearray(encode(GOLDEN_2["dense_float32"][0]))
    part = decode(memoryview(message)).parts["w"]
    assert isinstance(part, DenseValues)
    part.values.zero_()
    assert bytes(message) == encode(GOLDEN_2["dense_float32"][0])


LAYOUT = Layout(("a.weight", "a.bias"), ((2, 4), (2,)), (True, False), (True, True))
OTHER = Layout(("b.weight", "b.bias"), ((2, 4), (2,)), (True, False), (True, True))


def test_a_message_for_another_layout_is_refused() -> None:
    payload = Payload({"w": DenseValues(torch.ones(10))})
    assert same(decode(encode(payload, LAYOUT), LAYOUT), payload)
    assert same(decode(encode(payload), LAYOUT), payload)
    with pytest.raises(WireError, match="both sides must build the same network"):
        decode(encode(payload, OTHER), LAYOUT)


def test_parts_longer_than_the_model_are_refused() -> None:
    with pytest.raises(WireError, match="11 coordinates; at most 10"):
        decode(encode(Payload({"w": DenseValues(torch.ones(11))}), LAYOUT), LAYOUT)


def test_versions_of_parts_follow_their_bytes() -> None:
    one, two = DenseValues(torch.tensor([1.0, 2.0])), DenseValues(torch.tensor([1.0, 2.0]))
    assert one.version == two.version
    assert one.version != DenseValues(torch.tensor([1.0, 2.5])).version
    coded = [CodedValues(2, 1, version, NONE, EMPTY, octets(b"x")) for version in (NONE, DIGEST)]
    assert coded[0].version != coded[1].version  # the reference is part of the history


def test_supports_pack_and_unpack() -> None:
    theta = torch.arange(10.0) + 1
    support = Support.of(BITS)
    packed = support.pack(theta)
    assert packed.values.tolist() == [1.0, 3.0, 4.0, 9.0, 10.0]
    assert support.unpack(packed).equal(theta * BITS)
    assert dense_values(pack_sparse(theta, BITS)).equal(theta * BITS)
    assert support.digest == digest_of_bits(BITS) != digest_of_bits(~BITS)
    assert Support.of(BITS, LAYOUT).pack(theta).counts == (3, 2)


def test_values_of_another_mask_are_refused() -> None:
    ours, theirs = Support.of(BITS), Support.of(~BITS)
    with pytest.raises(ValueError, match="this side holds mask"):
        ours.unpack(theirs.pack(torch.ones(10)))
    with pytest.raises(ValueError, match="3 values for a mask that keeps 5"):
        ours.unpack(MaskedValues(torch.ones(3), ours.digest))
    with pytest.raises(ValueError, match="expected values on a known mask"):
        ours.unpack(DenseValues(torch.ones(10)))
    with pytest.raises(ValueError, match="does not describe a vector"):
        dense_values(MaskBits(BITS))
