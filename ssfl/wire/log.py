"""Saliency scores on a logarithmic scale: only their order matters, and they span many powers of two."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.reading import Reader, WireError
from ssfl.wire.entropy import inflated, squeezed
from ssfl.wire.value_codec import LARGEST_STEP, NotFiniteError, ValueCodec, Vector, added

_HEAD = struct.Struct("<fB")  # largest value, steps per octave
LEVELS = 256


@final
@dataclass(frozen=True)
class Log(ValueCodec):
    """One byte per value: 0, or the distance to the largest value in steps of 1 / `octave` octaves; `levels` levels.

    Error of a value: a factor from 2^(-1/2e) to 2^(1/2e), e = `octave`; values more than (levels - 2) / e
    octaves below the largest become 0. Values must not be negative.
    """

    code = 5
    levels: int = 256
    """2 to 256."""
    octave: int = 16
    """Steps per octave (a factor of two), 1 to 255."""

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode as largest value, then symbols. Raises NotFiniteError."""
        values = vector.delta
        low, high = map(float, torch.aminmax(values)) if len(values) else (0.0, 0.0)
        if not (low >= 0 and high <= LARGEST_STEP):
            raise NotFiniteError(f"scores from {low:.3g} to {high:.3g}: must be finite and not negative")
        largest = float(np.float32(high))
        symbols = np.zeros(len(values), np.uint8)
        if largest:
            below = values.div_(largest).log2_().mul_(-self.octave).round_().clamp_(min=0)
            kept = below <= self.levels - 2
            symbols = torch.where(kept, below + 1, 0).to(torch.uint8).numpy()
        return _HEAD.pack(largest, self.octave) + squeezed(symbols)

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode largest * 2^(-(symbol - 1) / octave)."""
        largest, octave = _HEAD.unpack(reader.take(_HEAD.size))
        if not 0 <= largest <= LARGEST_STEP or not octave:
            raise WireError(f"scores up to {largest} in {octave} steps per octave are not valid")
        symbols = np.frombuffer(inflated(reader.take(reader.left), count), np.uint8)
        table = largest * np.exp2(-(np.arange(LEVELS) - 1) / octave)
        table[0] = 0.0
        values = table.astype(np.float64 if dtype == torch.float64 else np.float32)[symbols]
        return added(torch.from_numpy(values), reference, dtype)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """Bytes of the head."""
        return _HEAD.size
