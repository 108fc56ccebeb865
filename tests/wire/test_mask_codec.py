"""Coded masks: every mask comes back, structured ones get small, hostile bytes are refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.payloads import MaskBits
from ssfl.core.reading import WireError
from ssfl.core.rng import stream
from ssfl.wire.coding import smallest_mask
from ssfl.wire.entropy import squeezed, squeezed_strings
from ssfl.wire.mask_codec import (
    Segment,
    decode_packed,
    decode_sorted,
    encode_packed,
    encode_sorted,
    segments_of,
)
from ssfl.wire.parts import CodedMask
from tests.support.refusals import refusal

NET = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 10)
)
LAYOUT = Layout.of(NET)
SEGMENT_LISTS = st.lists(
    st.builds(Segment, st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)), max_size=4
)


@st.composite
def masks(draw: st.DrawFn) -> tuple[Tensor, list[Segment]]:
    segments = draw(SEGMENT_LISTS)
    size = sum(s.size for s in segments)
    kind = draw(st.sampled_from(["all", "none", "any"]))
    bits = (
        [kind == "all"] * size
        if kind != "any"
        else draw(st.lists(st.booleans(), min_size=size, max_size=size))
    )
    return torch.tensor(bits, dtype=torch.bool), segments


@given(masks())
def test_every_mask_comes_back(case: tuple[Tensor, list[Segment]]) -> None:
    bits, segments = case
    assert decode_sorted(memoryview(encode_sorted(bits, segments)), len(bits)).equal(bits)
    assert decode_packed(memoryview(encode_packed(bits)), len(bits)).equal(bits)


@pytest.mark.parametrize("count", [LAYOUT.size, LAYOUT.prunable_size, 77, 0])
def test_segments_fill_a_mask(count: int) -> None:
    segments = segments_of(LAYOUT, count)
    assert sum(s.size for s in segments) == count
    if count == LAYOUT.prunable_size:
        assert segments == (Segment(16, 3, 9), Segment(32, 16, 9), Segment(10, 32, 1))
    bits = torch.rand(count, generator=stream(1, "bits")) < 0.3
    coded = smallest_mask(bits, LAYOUT)
    assert (coded if isinstance(coded, MaskBits) else coded.decoded()).bits.equal(bits)


def with_margins(rows: int, columns: int, kernel: int, share: float) -> Tensor:
    """A random mask whose rows and columns differ in density, as saliency masks do."""
    generator = stream(5, "margins")
    odds = (
        torch.randn(rows, 1, 1, generator=generator) * 2 + torch.randn(1, columns, 1, generator=generator) * 2
    )
    odds = odds + math.log(share / (1 - share))
    return (torch.rand(rows, columns, kernel, generator=generator) < odds.sigmoid()).view(-1)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_rows_and_columns_of_unequal_density_cost_less_than_the_layers_entropy(share: float) -> None:
    """The layer's entropy, computed here, would be the bound without margins; the model with margins is the aim."""
    rows, columns, kernel = 256, 256, 9
    bits = with_margins(rows, columns, kernel, share)
    p = float(bits.double().mean())
    per_layer = -len(bits) * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    coded = encode_sorted(bits, [Segment(rows, columns, kernel)])
    assert len(coded) < 0.8 * per_layer
    assert decode_sorted(memoryview(coded), len(bits)).equal(bits)


def test_the_smallest_form_is_chosen() -> None:
    size = LAYOUT.prunable_size
    assert smallest_mask(torch.zeros(size, dtype=torch.bool), LAYOUT).nbytes < 60
    noise = torch.rand(size, generator=stream(2, "noise")) < 0.5
    assert smallest_mask(noise, LAYOUT).nbytes == -(-size // 8)
    assert isinstance(smallest_mask(noise, LAYOUT), MaskBits)
    net = Layout.of(nn.Linear(256, 256, bias=False))
    structured = with_margins(256, 256, 1, 0.3)
    coded = smallest_mask(structured, net)
    assert isinstance(coded, CodedMask)
    assert coded.nbytes < min(256 * 256 // 8, len(encode_packed(structured)))


def body(
    segments: list[tuple[int, int, int]], margins: bytes, bits: bytes, number: int | None = None
) -> bytes:
    count = len(segments) if number is None else number
    table = count.to_bytes(4, "little") + b"".join(struct.pack("<III", *s) for s in segments) + margins
    frame = squeezed_strings(table)
    return struct.pack("<II", len(frame), len(table)) + frame + squeezed(bits)


def refused(raw: bytes, count: int) -> str:
    return refusal(lambda: decode_sorted(memoryview(raw), count))


def test_hostile_masks() -> None:
    good = body([(2, 2, 2)], b"\x01\x02\x03\x04", b"\xf0")
    assert decode_sorted(memoryview(good), 8).tolist() == [True] * 4 + [False] * 4
    for cut in range(len(good)):
        refused(good[:cut], 8)
    refused(good + b"x", 8)
    assert "do not fill its 9" in refused(good, 9)
    assert "do not fill its 8" in refused(body([(2, 2, 0), (2, 2, 2)], bytes(8), b"\xf0"), 8)
    assert "do not fill its table" in refused(body([(2, 2, 2)], b"\x01\x02\x03", b"\xf0"), 8)
    assert "do not fill its table" in refused(body([(8, 1, 1)], b"", b"\xf0"), 8)
    assert "at most 65536" in refused(body([], b"", b"\xf0", number=70_000), 8)
    huge = struct.pack("<II", 4, (1 << 32) - 1) + b"abcd"
    assert "a table of 4294967295 bytes" in refused(huge, 8)
    assert "do not fill" in refused(body([(1 << 31, 1 << 31, 1 << 31)], b"", b"\xf0"), 8)
    padding = body([(1, 1, 5)], b"\x01\x02", b"\xff")
    assert "unused bits" in refused(padding, 5)


def test_a_bomb_is_not_inflated() -> None:
    """200 bytes that would inflate to 64 MiB, where 1 byte is expected."""
    bomb = squeezed_strings(np.zeros(1 << 26, np.uint8))
    assert len(bomb) < 10_000
    with pytest.raises(WireError, match="67108864 bytes where 1 are expected"):
        decode_packed(memoryview(bomb), 8)
