"""Uniform quantisation with one step per tensor, then entropy coding: the fewest bytes for a given error.

With a step of s times a tensor's root mean square, the relative error is s / sqrt(12) (nearest), and the size is the
symbols' entropy: near log2(rms of a Laplacian / s) bits per value (bench_codec measures both).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.reading import Reader, WireError
from ssfl.wire.entropy import from_planes, inflated, planes_of, squeezed, unzigzag, zigzag
from ssfl.wire.value_codec import NotFiniteError, ValueCodec, Vector, added, checked_steps, wide

Rounding = Literal["nearest", "stochastic"]
_HEAD = struct.Struct("<BH")  # bytes per symbol, segments
MAX_SEGMENTS = (1 << 16) - 1
LARGEST_SYMBOL = 1 << 30
FINE_STEPS = 1 << 22
"""Most steps in the largest difference of a tensor, with a step from its values (`_fine_step`)."""
_SEGMENT = np.dtype([("count", "<u4"), ("step", "<f4")])


@final
@dataclass(frozen=True)
class Uniform(ValueCodec):
    """Symbols are round(delta / step). The step of a tensor is `step` times the rms of its delta.

    Error of a value: at most step / 2 with "nearest", below one step with "stochastic", which is unbiased:
    floor(delta / step + u) with u uniform in [0, 1).
    """

    code = 4
    step: float = 0.5
    """Step in root mean squares of a tensor's delta; above 0."""
    rounding: Rounding = "nearest"
    of: Literal["delta", "values"] = "delta"
    """What the root mean square is computed from. With "values", differences have the same error as coded values."""

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """True with stochastic rounding."""
        return self.rounding == "stochastic"

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode as symbols of one byte if all fit, else of two to four bytes in byte planes. Raises NotFiniteError."""
        counts = _merged([n for n in vector.counts if n])
        scaled = vector.delta
        steps = np.zeros(len(counts), _SEGMENT)
        steps["count"] = counts
        largest = 0.0
        measured = scaled if self.of == "delta" else vector.values.to(scaled.dtype)
        parts = zip(torch.split(scaled, counts), torch.split(measured, counts), steps, strict=True)
        for part, measured_part, segment in parts:
            step = self._step(measured_part)
            if self.of == "values":
                step = max(step, _fine_step(part))
            segment["step"] = step
            if step:
                part.div_(step)
                self._round_(part, draws)
                low, high = torch.aminmax(part)
                largest = max(largest, -float(low), float(high))
        if largest > LARGEST_SYMBOL:
            raise NotFiniteError(f"a symbol of {largest:.3g} steps: use a larger step")
        size, symbols = _symbols(scaled, largest)
        return b"".join([_HEAD.pack(size, len(counts)), steps.tobytes(), squeezed(symbols)])

    def _step(self, measured: Tensor) -> float:
        rms = float(torch.linalg.vector_norm(measured)) / len(measured) ** 0.5
        if not np.isfinite(rms):
            raise NotFiniteError("values that are not finite, or too large to be coded")
        if not rms:
            return 0.0
        return max(float(np.float32(self.step * rms)), float(np.finfo(np.float32).tiny))

    def _round_(self, scaled: Tensor, draws: torch.Generator) -> Tensor:
        if self.rounding == "nearest":
            return scaled.round_()
        return scaled.add_(torch.rand(scaled.shape, dtype=scaled.dtype, generator=draws)).floor_()

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode step * symbol and add the reference."""
        size, segments = _HEAD.unpack(reader.take(_HEAD.size))
        if not 1 <= size <= 4:
            raise WireError(f"symbols of {size} bytes; 1 to 4 are read")
        table = np.frombuffer(reader.take(segments * _SEGMENT.itemsize), _SEGMENT)
        counts, steps = table["count"].tolist(), checked_steps(torch.from_numpy(table["step"].copy()))
        if sum(counts) != count:
            raise WireError(f"segments of {sum(counts)} values where {count} are expected")
        raw = inflated(reader.take(reader.left), count * size)
        symbols = torch.from_numpy(unzigzag(from_planes(raw, count, size)))
        # Not abs().max(): the magnitude of -2^31 does not fit into int32.
        if (
            size > 3
            and count
            and not -LARGEST_SYMBOL <= int(symbols.min()) <= int(symbols.max()) <= LARGEST_SYMBOL
        ):
            raise WireError("a symbol is out of range")
        delta = torch.empty(count, dtype=wide(dtype))
        for out, part, step in zip(
            torch.split(delta, counts), torch.split(symbols, counts), steps.tolist(), strict=True
        ):
            # The product is computed in the wide type; torch.mul(part, step, out=out) would compute it in float32.
            out.copy_(part).mul_(step)
        return added(delta, reference, dtype)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """Bytes of head, counts and steps."""
        _, segments = _HEAD.unpack(reader.take(_HEAD.size))
        return _HEAD.size + int(segments) * _SEGMENT.itemsize


def _fine_step(delta: Tensor) -> float:
    """The smallest step of differences whose values have become 0 or nearly 0, so that their rms gives none.

    It is 2^-22 of the largest difference to the reference, about the rounding of float32 there; 0 without a difference.
    """
    low, high = torch.aminmax(delta)
    largest = max(-float(low), float(high))
    return max(float(np.float32(largest / FINE_STEPS)), float(np.finfo(np.float32).tiny)) if largest else 0.0


def _symbols(scaled: Tensor, largest: float) -> tuple[int, np.ndarray]:
    """Returns (bytes per symbol, the zigzag symbols [n] in byte planes)."""
    if largest <= 127:
        return 1, zigzag(scaled.to(torch.int8).numpy())
    numbers = zigzag(scaled.to(torch.int32).numpy())
    size = next(b for b in (2, 3, 4) if largest <= (1 << (8 * b - 1)) - 1)
    return size, planes_of(numbers)[: size * len(numbers)]


def _merged(counts: list[int]) -> list[int]:
    """Counts of at most MAX_SEGMENTS segments; in larger networks the last tensors share a step."""
    if len(counts) <= MAX_SEGMENTS:
        return counts
    return [*counts[: MAX_SEGMENTS - 1], sum(counts[MAX_SEGMENTS - 1 :])]
