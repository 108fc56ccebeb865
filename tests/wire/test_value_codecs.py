"""Codecs of values: the stated error, no bias where none is promised, and refusals."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.reading import Reader, WireError, raw_bytes
from ssfl.core.rng import stream
from ssfl.wire.entropy import from_planes, inflated, planes_of, squeezed, squeezed_strings, unzigzag, zigzag
from ssfl.wire.half import Half
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.parts import VALUE_CODECS
from ssfl.wire.uniform import Rounding, Uniform
from ssfl.wire.value_codec import NotFiniteError, ValueCodec, Vector
from tests.support.refusals import refusal

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = (0, 1, 2, 7, 1023, 1024, 1025, 5001)
LOSSY: tuple[ValueCodec, ...] = (
    Half(torch.bfloat16),
    Half(torch.float16, "zstd"),
    Int8(1024),
    Int8(7, "nearest", "raw"),
    Uniform(0.5),
    Uniform(0.003),
    Uniform(2.0, "stochastic"),
)
SIGNED: tuple[ValueCodec, ...] = (Lossless(), *LOSSY)


def draws(name: str = "values") -> torch.Generator:
    return stream(3, name)


def normal(count: int, dtype: torch.dtype = torch.float32, name: str = "values") -> Tensor:
    return torch.randn(count, generator=draws(name), dtype=torch.float64).to(dtype)


def crossed(codec: ValueCodec, vector: Vector, name: str = "draws") -> Tensor:
    data = codec.encode(vector, draws(name))
    fixed = codec.fixed_nbytes(len(vector.values), vector.values.dtype)
    assert fixed is None or fixed == len(data)
    assert 0 <= type(codec).metadata_nbytes(Reader(data), lambda: len(vector.values)) <= len(data)
    reader = Reader(data)
    decode = VALUE_CODECS[codec.code].decode
    found = decode(reader, len(vector.values), vector.values.dtype, vector.reference)
    reader.end()
    return found


def bound(codec: ValueCodec, vector: Vector) -> Tensor:
    """The largest error [n] that the codec's docstring allows, in float64, from the definition."""
    delta = vector.values.double()
    if vector.reference is not None:
        delta = delta - vector.reference.double()
    limit = torch.zeros(len(delta), dtype=torch.float64)
    if isinstance(codec, Half):
        bits, least = (8, 2.0**-134) if codec.dtype == torch.bfloat16 else (11, 2.0**-25)
        limit = delta.abs() * 2.0**-bits + least
    elif isinstance(codec, Int8):
        blocks = zip(torch.split(delta, codec.block), torch.split(limit, codec.block), strict=True)
        for part, out in blocks if len(delta) else ():
            scale = float(part.abs().max()) / 126
            out.fill_(scale if codec.rounding == "stochastic" else scale / 2)
    elif isinstance(codec, Uniform):
        counts = [n for n in vector.counts if n]
        for part, out in zip(torch.split(delta, counts), torch.split(limit, counts), strict=True):
            step = codec.step * float(part.pow(2).mean().sqrt()) * (1 + 1e-6)
            out.fill_(step if codec.rounding == "stochastic" else step / 2)
    # What the value type itself rounds away: of the delta, of symbol times step, and of the sum.
    resolution = torch.finfo(vector.values.dtype).eps
    wide = torch.finfo(torch.float32).eps if vector.values.dtype != torch.float64 else resolution
    size = vector.values.double().abs() + delta.abs() + limit
    if vector.reference is not None:
        size = size + vector.reference.double().abs()
    return limit + 2 * resolution * size + 8 * wide * size + torch.finfo(vector.values.dtype).tiny


@pytest.mark.parametrize("codec", SIGNED, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("referred", [False, True])
def test_errors_are_within_the_stated_bounds(
    codec: ValueCodec, dtype: torch.dtype, size: int, referred: bool
) -> None:
    values = normal(size, dtype) * 0.1
    reference = values + normal(size, dtype, "other") * 0.01 if referred else None
    counts = [size // 3, 0, size - size // 3]
    found = crossed(codec, Vector(values, reference, counts))
    assert found.dtype == dtype
    assert found.shape == values.shape
    if codec.exact:
        assert bytes(raw_bytes(found)) == bytes(raw_bytes(values))
    error = (found.double() - values.double()).abs()
    assert bool((error <= bound(codec, Vector(values, reference, counts))).all())


floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(floats, floats), max_size=40), st.sampled_from(SIGNED), st.booleans())
def test_errors_of_any_values(pairs: list[tuple[float, float]], codec: ValueCodec, referred: bool) -> None:
    if isinstance(codec, Half) and codec.dtype == torch.float16:
        pairs = [(a / 100, b / 100) for a, b in pairs]  # its range ends at 65,504
    values = torch.tensor([a for a, _ in pairs])
    reference = torch.tensor([b for _, b in pairs]) if referred else None
    vector = Vector(values, reference, [len(pairs)])
    error = (crossed(codec, vector).double() - values.double()).abs()
    assert bool((error <= bound(codec, vector)).all())


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=30), st.sampled_from(DTYPES), st.booleans())
def test_lossless_keeps_every_bit(numbers: list[float], dtype: torch.dtype, referred: bool) -> None:
    values = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    reference = values.flip(0) if referred else None
    found = crossed(Lossless(), Vector(values, reference, [len(values)]))
    assert bytes(raw_bytes(found)) == bytes(raw_bytes(values))


UNBIASED = (Int8(64, "stochastic"), Uniform(1.0, "stochastic"), Uniform(4.0, "stochastic"))
REPEATS = 2000


@pytest.mark.parametrize("codec", UNBIASED, ids=repr)
def test_stochastic_rounding_is_unbiased(codec: ValueCodec) -> None:
    """The mean of 2000 codings of each of 256 values, against the standard error that two outcomes must have.

    Of 256 unbiased means none is 4.9 standard errors off, with probability above 0.9997.
    """
    values = normal(256) * 0.1
    found = torch.stack([crossed(codec, Vector(values, None, [256]), f"draw {i}") for i in range(REPEATS)])
    low, high, exact = found.amin(0).double(), found.amax(0).double(), values.double()
    share = (exact - low) / (high - low)
    tested = (high > low) & (share > 0.02) & (share < 0.98)  # closer to an outcome the other is too rare
    assert int(tested.sum()) > 200
    error = ((found.double().mean(0) - exact) / ((high - exact) * (exact - low) / REPEATS).sqrt())[tested]
    assert float(error.abs().max()) < 4.9
    assert float(error.std()) == pytest.approx(1, abs=0.2)  # as spread as independent draws are
    assert bool(((found == found.amin(0)) | (found == found.amax(0))).all())  # two neighbouring symbols


def test_nearest_rounding_is_biased() -> None:
    values = normal(256) * 0.1
    found = torch.stack([crossed(Uniform(1.0), Vector(values, None, [256]), f"{i}") for i in range(3)])
    assert bool((found == found[0]).all())
    assert float((found[0] - values).abs().max()) > 0.04


def test_draws_come_from_the_named_stream() -> None:
    vector = Vector(normal(1000), None, [1000])
    for codec in (Int8(), Uniform(1.0, "stochastic")):
        assert codec.draws
        assert codec.encode(vector, draws("a")) == codec.encode(vector, draws("a"))
        assert codec.encode(vector, draws("a")) != codec.encode(vector, draws("b"))
    assert not Uniform().draws
    assert Uniform().encode(vector, draws("a")) == Uniform().encode(vector, draws("b"))


@pytest.mark.parametrize("step", [0.25, 0.5, 1.0])
def test_the_relative_error_of_a_uniform_step(step: float) -> None:
    """step / sqrt(12) for nearest rounding of a smooth density, twice the variance and more for stochastic."""
    values = normal(200_000)
    found = crossed(Uniform(step), Vector(values, None, [len(values)]))
    error = float((found - values).norm() / values.norm())
    assert error == pytest.approx(step / math.sqrt(12), rel=0.01)


def test_tensors_have_steps_of_their_own() -> None:
    values = torch.cat([normal(1000) * 100, normal(1000) * 1e-6])
    found = crossed(Uniform(0.1), Vector(values, None, [1000, 1000]))
    for part, exact in zip(torch.split(found, 1000), torch.split(values, 1000), strict=True):
        assert float((part - exact).norm() / exact.norm()) < 0.04
    together = crossed(Uniform(0.1), Vector(values, None, [2000]))
    assert int(together[1000:].count_nonzero()) == 0


@pytest.mark.parametrize(("largest", "size"), [(100, 1), (127, 1), (128, 2), (40_000, 3), (9_000_000, 4)])
def test_symbols_take_as_many_bytes_as_the_largest_needs(largest: int, size: int) -> None:
    """A step of exactly 1: the rms of the values is 1 / step of the codec."""
    count = 4 * largest * largest
    if count > 1 << 22:
        count = 1 << 22
    values = torch.zeros(count)
    values[0] = largest
    rms = math.sqrt(largest * largest / count)
    data = Uniform(1 / rms).encode(Vector(values, None, [count]), draws())
    assert data[0] == size
    found = crossed(Uniform(1 / rms), Vector(values, None, [count]))
    assert found[0].item() == pytest.approx(largest, rel=1e-6)
    assert int(found[1:].count_nonzero()) == 0


def test_float64_values_are_computed_in_float64() -> None:
    """docs/wire-format.md: computed in the value type. In float32 this product would lose its last digits."""
    symbol, step = 123_456_789, np.float32(0.1)
    body = struct.pack("<BHI", 4, 1, 1) + step.tobytes() + squeezed(struct.pack("<I", 2 * symbol))
    assert Uniform.decode(Reader(body), 1, torch.float64, None).item() == symbol * float(step)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e10])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("left", [0.0, 1e-9])
def test_values_that_have_become_zero_arrive_as_zero(scale: float, rounding: Rounding, left: float) -> None:
    """Their root mean square gives no step, or one too fine; the receiver must not keep what it holds."""
    held = torch.cat([normal(100), normal(100, name="other")]) * scale
    values = torch.cat([held[:100] * left, held[100:] * 1.01])
    codec = Uniform(0.05, rounding, of="values")
    found = crossed(codec, Vector(values, held, [100, 100]))
    assert float(found[:100].abs().max()) <= 2.0**-21 * float(held[:100].abs().max())
    unchanged = crossed(codec, Vector(torch.zeros(5), torch.zeros(5), [5]))
    assert unchanged.equal(torch.zeros(5))


def test_uniform_codes_of_normal_values_are_near_their_entropy() -> None:
    values = normal(500_000)
    symbols = (values / (0.5 * float(values.pow(2).mean().sqrt()))).round().long()
    shares = torch.unique(symbols, return_counts=True)[1].double() / len(values)
    entropy_bytes = float(-(shares * shares.log2()).sum()) * len(values) / 8
    data = Uniform(0.5).encode(Vector(values, None, [len(values)]), draws())
    assert entropy_bytes * 0.99 < len(data) < entropy_bytes * 1.03


@pytest.mark.parametrize("codec", [Half(), Half(torch.float16), Int8(), Uniform()], ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_not_coded(codec: ValueCodec, bad: float) -> None:
    values = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(NotFiniteError):
        codec.encode(Vector(values, None, [3]), draws())


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(NotFiniteError, match="float16"):
        Half(torch.float16).encode(Vector(torch.tensor([1e6]), None, [1]), draws())


@pytest.mark.parametrize("codec", [Log(256, 8), Log(64, 4), Log(16, 1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_keeps_the_magnitude(codec: Log, dtype: torch.dtype) -> None:
    values = torch.exp(normal(5000, torch.float64) * 5).to(dtype)
    values[::17] = 0.0
    found = crossed(codec, Vector(values, None, [5000]))
    assert found.dtype == dtype
    reached = values.max() * 2.0 ** (-(codec.levels - 2 + 0.49) / codec.octave)
    kept = values > reached
    assert 0 < int(kept.count_nonzero()) <= 5000
    factor = (found[kept] / values[kept]).log2().abs()
    assert float(factor.max()) <= 0.5 / codec.octave + 1e-5
    beyond = values < values.max() * 2.0 ** (-(codec.levels - 2 + 0.51) / codec.octave)
    assert int(found[beyond].count_nonzero()) == 0


@pytest.mark.parametrize("codec", [Log(256, 16), Log(64, 5), Log(2, 255)], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_log_of_every_size_and_type(codec: Log, dtype: torch.dtype, size: int) -> None:
    """Magnitudes within half a step and the type's rounding, or 0 below the last level."""
    values = normal(size, torch.float64).abs().clamp(min=1e-3).to(dtype)
    found = crossed(codec, Vector(values, None, [size]))
    assert (found.dtype, found.shape) == (dtype, values.shape)
    if not size:
        return
    below = (values.double().max() / values.double()).log2() * codec.octave
    kept, lost = below <= codec.levels - 2.51, below >= codec.levels - 1.49
    octaves = (found[kept].double() / values[kept].double()).log2().abs()
    assert bool((octaves <= 0.5 / codec.octave + 3 * torch.finfo(dtype).eps + 1e-5).all())
    assert int(found[lost].count_nonzero()) == 0


def test_log_of_no_scores_and_of_zeros() -> None:
    assert crossed(Log(), Vector(torch.empty(0), None, [0])).numel() == 0
    assert crossed(Log(), Vector(torch.zeros(9), None, [9])).equal(torch.zeros(9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-3])
def test_log_refuses_what_is_no_score(bad: float) -> None:
    with pytest.raises(NotFiniteError, match="must be finite and not negative"):
        Log().encode(Vector(torch.tensor([1.0, bad]), None, [2]), draws())


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30))
def test_zigzag_folds_and_unfolds(numbers: list[int]) -> None:
    signed = np.array(numbers, np.int32)
    folded = zigzag(signed)
    assert folded.tolist() == [2 * v if v >= 0 else -2 * v - 1 for v in numbers]
    assert unzigzag(folded).tolist() == numbers


@given(st.lists(st.integers(0, 2**24 - 1), max_size=30))
def test_planes_hold_the_lowest_bytes_first(numbers: list[int]) -> None:
    planes = planes_of(np.array(numbers, np.uint32))
    count = len(numbers)
    assert planes[:count].tolist() == [v & 255 for v in numbers]
    assert planes[2 * count : 3 * count].tolist() == [v >> 16 for v in numbers]
    assert from_planes(bytearray(planes[: 3 * count].tobytes()), count, 3).tolist() == numbers


def test_a_frame_says_its_size_and_nothing_follows() -> None:
    frame = squeezed(b"abc" * 100)
    assert inflated(frame, 300) == b"abc" * 100
    for raw, size in ((frame, 299), (frame, 301), (frame + b"x", 300), (frame[:-1], 300), (b"", 300)):
        with pytest.raises(WireError):
            inflated(raw, size)
    with pytest.raises(WireError, match="nothing was coded"):
        inflated(frame, 0)
    assert squeezed(b"") == b""


def test_a_window_above_8_mib_is_refused() -> None:
    """Also where the window is the content itself: a frame in one segment."""
    raw = bytes((8 << 20) + 1)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, write_content_size=True)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
    assert zstandard.get_frame_parameters(frame).window_size > 8 << 20
    assert "needs a window of" in refusal(lambda: inflated(frame, len(raw)))
    for ours in (squeezed(raw), squeezed_strings(raw)):
        assert inflated(ours, len(raw)) == raw


def test_an_empty_frame_is_no_frame() -> None:
    assert inflated(b"", 0) == b""


@pytest.mark.parametrize("codec", [Int8.code, Half.code, Uniform.code, Log.code, Lossless.code])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoded_vector_holds_its_own_values_only(codec: int, dtype: torch.dtype) -> None:
    """One value in a block of 2^20, as a hostile sender may write it, takes the memory of one value."""
    made: dict[int, ValueCodec] = {
        3: Int8(1 << 20, "nearest"),
        2: Half(),
        4: Uniform(),
        5: Log(),
        1: Lossless(),
    }
    data = made[codec].encode(Vector(torch.ones(1, dtype=dtype), None, [1]), draws())
    found = VALUE_CODECS[codec].decode(Reader(data), 1, dtype, None)
    assert found.untyped_storage().nbytes() == dtype.itemsize


@pytest.mark.parametrize("changed", [0.001, 0.1, 3.0])
def test_differences_with_the_error_of_values(changed: float) -> None:
    """int8 of="values": half of a 126th of the block's largest value or difference; fewer bytes for small changes."""
    values = normal(5001)
    held = values + normal(5001, name="other") * changed
    codec = Int8(256, "nearest", of="values")
    found = crossed(codec, Vector(values, held, [5001]))
    whole = Int8(256, "nearest").encode(Vector(values, None, [5001]), draws())
    for got, exact, before in zip(*(torch.split(v, 256) for v in (found, values, held)), strict=True):
        largest = max(float(exact.abs().max()), float((exact - before).abs().max()))
        assert float((got - exact).abs().max()) <= largest / 126 / 2 + 1e-6
    assert (len(codec.encode(Vector(values, held, [5001]), draws())) < 0.75 * len(whole)) == (changed < 1)


def test_the_last_block_may_be_shorter() -> None:
    """Against the format's definition: value = scale of its block times symbol."""
    scales, symbols = np.array([0x3F80, 0x4000], "<u2"), np.array([1, -2, 3, 4, -5], np.int8)
    data = struct.pack("<BI", 0, 3) + scales.tobytes() + symbols.tobytes()
    for dtype in DTYPES:
        assert Int8.decode(Reader(data), 5, dtype, None).tolist() == [1.0, -2.0, 3.0, 8.0, -10.0]


def refused(codec: type[ValueCodec], data: bytes, count: int) -> str:
    return refusal(lambda: codec.decode(Reader(data), count, torch.float32, None))


def test_hostile_data_of_codecs() -> None:
    one = np.float32(1).tobytes()
    inf, minus = np.float32(math.inf).tobytes(), np.float32(-1).tobytes()
    assert "symbols of 5 bytes" in refused(Uniform, struct.pack("<BH", 5, 0), 0)
    assert "segments of 7" in refused(Uniform, struct.pack("<BHI", 1, 1, 7) + one, 3)
    for step in (inf, minus, np.float32(math.nan).tobytes(), np.float32(1e20).tobytes()):
        text = refused(Uniform, struct.pack("<BHI", 1, 1, 3) + step + squeezed(b"abc"), 3)
        assert "not finite, negative or above" in text
    table = struct.pack("<BHI", 4, 1, 1) + one
    assert "out of range" in refused(Uniform, table + squeezed(struct.pack("<I", 2**32 - 2)), 1)
    for symbol in (2**32 - 1, 2**32 - 2, 2**31 + 2):  # -2^31, 2^31 - 1, 2^30 + 1
        assert "out of range" in refused(Uniform, table + squeezed(struct.pack("<I", symbol)), 1)
    assert "stage 2" in refused(Int8, struct.pack("<BI", 2, 4), 3)
    assert "blocks of 0" in refused(Int8, struct.pack("<BI", 0, 0), 3)
    assert "blocks of 1048577" in refused(Int8, struct.pack("<BI", 0, (1 << 20) + 1), 3)
    assert "2 symbols where 3" in refused(Int8, struct.pack("<BIH", 0, 4, 0x3F80) + b"ab", 3)
    assert "not finite" in refused(Int8, struct.pack("<BIH", 0, 4, 0x7F80) + b"abc", 3)
    assert "value type 0" in refused(Half, bytes([0, 0, 1, 2]), 1)
    assert "not finite" in refused(Half, bytes([3, 0, 0x80, 0x7F]), 1)
    assert "2 bytes where 4" in refused(Half, bytes([3, 0, 1, 2]), 2)
    assert "not valid" in refused(Log, inf + b"\x01" + squeezed(b"abc"), 3)
    assert "not valid" in refused(Log, one + b"\x00" + squeezed(b"abc"), 3)
    assert "a frame of 3 bytes where 12" in refused(Lossless, squeezed(b"abc"), 3)
