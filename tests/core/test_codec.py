"""The wire format: golden bytes, hostile files, and a fuzz."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.codec import CodecError, decode, encode
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
    nbytes,
    pack_sparse,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
HOSTILE = sorted((GOLDEN / "hostile").glob("*.bin"))
BITS = torch.tensor([True, False, True, True, False, False, False, False, True, True])
DIGEST = bytes(range(8))

# Written by hand from docs/wire-format.md: header, part header, name, body; the checksum follows.
GOLDEN_PAYLOADS: dict[str, tuple[Payload, str]] = {
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
            raw = value.contiguous().view(torch.uint8).tolist() if value.numel() else []
            found += [name, value.dtype, tuple(value.shape), raw]
        else:
            found += [name, value]
    return found


@pytest.mark.parametrize("name", GOLDEN_PAYLOADS)
def test_golden_bytes(name: str) -> None:
    payload, text = GOLDEN_PAYLOADS[name]
    expected = signed(bytes.fromhex(text.replace(" ", "")))
    assert encode(payload) == expected
    assert nbytes(payload) == len(expected)
    assert (GOLDEN / f"{name}.bin").read_bytes() == expected
    assert same(decode(expected), payload)


def test_golden_files_and_table_are_the_same() -> None:
    assert {p.stem for p in GOLDEN.glob("*.bin")} == set(GOLDEN_PAYLOADS)


@pytest.mark.parametrize("path", HOSTILE, ids=lambda p: p.stem)
def test_hostile_files_are_refused_in_one_line(path: Path) -> None:
    with pytest.raises(CodecError) as caught:
        decode(path.read_bytes())
    assert "\n" not in str(caught.value)


def test_there_are_hostile_files() -> None:
    assert len(HOSTILE) >= 14


dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
numbers = st.lists(st.floats(width=16, allow_nan=True), max_size=20)
values = st.builds(lambda v, d: torch.tensor(v, dtype=d), numbers, dtypes)
bits = st.lists(st.booleans(), max_size=30).map(lambda b: torch.tensor(b, dtype=torch.bool))
names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", max_size=12)


@st.composite
def sparse(draw: st.DrawFn) -> SparseValues:
    support = draw(bits)
    count = int(support.sum())
    numbers = draw(st.lists(st.floats(width=16), min_size=count, max_size=count))
    return SparseValues(torch.tensor(numbers, dtype=draw(dtypes)), support)


parts = st.one_of(
    values.map(DenseValues),
    bits.map(MaskBits),
    sparse(),
    st.builds(MaskedValues, values, st.binary(min_size=8, max_size=8)),
)
payloads = st.builds(Payload, st.dictionaries(names, parts, max_size=4), st.integers(SERVER, 2**31 - 1))


@given(payloads)
def test_round_trip(payload: Payload) -> None:
    raw = encode(payload)
    assert len(raw) == nbytes(payload)
    assert same(decode(raw), payload)
    assert same(decode(memoryview(raw)), payload)


@given(st.binary(max_size=80))
@example(b"")
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    only_codec_errors(raw)


@given(st.binary(max_size=80), st.integers(0, 255))
def test_any_body_under_a_valid_checksum_is_read_or_refused(body: bytes, count: int) -> None:
    only_codec_errors(signed(b"SSFL\x01" + bytes([count]) + b"\xff\xff\xff\xff" + body))


@given(payloads, st.data())
def test_damage_is_found_or_refused(payload: Payload, data: st.DataObject) -> None:
    """One changed byte is always found; with the checksum made good, reading still ends in a payload or an error."""
    raw = bytearray(encode(payload))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodecError):
        decode(bytes(raw))
    only_codec_errors(signed(bytes(raw[:-4])))


@given(payloads, st.integers(1, 200))
def test_every_truncation_is_refused(payload: Payload, cut: int) -> None:
    raw = encode(payload)
    with pytest.raises(CodecError):
        decode(raw[: max(0, len(raw) - cut)])


def only_codec_errors(raw: bytes) -> None:
    try:
        payload = decode(raw)
    except CodecError:
        return
    assert encode(payload) == raw


def test_decoding_leaves_the_callers_bytes_alone() -> None:
    raw = bytearray(encode(GOLDEN_PAYLOADS["dense_float32"][0]))
    part = decode(memoryview(raw)).parts["w"]
    assert isinstance(part, DenseValues)
    part.values.zero_()
    assert bytes(raw) == encode(GOLDEN_PAYLOADS["dense_float32"][0])


def test_supports_pack_and_unpack() -> None:
    theta = torch.arange(10.0) + 1
    support = Support.of(BITS)
    packed = support.pack(theta)
    assert packed.values.tolist() == [1.0, 3.0, 4.0, 9.0, 10.0]
    assert support.unpack(packed).equal(theta * BITS)
    assert dense_values(pack_sparse(theta, BITS)).equal(theta * BITS)
    assert support.digest == digest_of_bits(BITS) != digest_of_bits(~BITS)


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
