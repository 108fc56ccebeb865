"""Two bytes per value: bfloat16 or float16."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.reading import VALUE_TYPES, Reader, WireError, floats_of, items_of
from ssfl.wire.entropy import Array, from_planes, inflated, planes_of, squeezed
from ssfl.wire.int8 import STAGES, Stage
from ssfl.wire.value_codec import NotFiniteError, ValueCodec, Vector, added, wide

_HEAD = struct.Struct("<BB")  # value type, stage
_HALVES = (torch.float16, torch.bfloat16)


@final
@dataclass(frozen=True)
class Half(ValueCodec):
    """The delta in bfloat16 or float16, rounded to nearest.

    Error of a value: at most 2^-8 (bfloat16) or 2^-11 (float16) of the delta's magnitude; of magnitudes below 2^-126
    (2^-14) at most 2^-134 (2^-25). float16 ends at 65,504: larger deltas are refused.
    """

    code = 2
    dtype: torch.dtype = torch.bfloat16
    stage: Stage = "raw"

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode as value type, stage and 16-bit values."""
        halves = vector.delta.to(self.dtype)
        if not bool(halves.isfinite().all()):
            raise NotFiniteError(f"values that are not finite, or too large for {self.dtype}")
        items = items_of(halves)
        data = squeezed(planes_of(items)) if self.stage == "zstd" else items.tobytes()
        return _HEAD.pack(VALUE_TYPES.index(self.dtype), STAGES.index(self.stage)) + data

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode the 16-bit values and add the reference."""
        kind, stage = _HEAD.unpack(reader.take(_HEAD.size))
        if kind >= len(VALUE_TYPES) or VALUE_TYPES[kind] not in _HALVES or stage >= len(STAGES):
            raise WireError(f"16-bit values of value type {kind} in stage {stage} are unknown")
        raw = reader.take(reader.left)
        items: Array
        if STAGES[stage] == "zstd":
            items = from_planes(inflated(raw, 2 * count), count, 2)
        elif len(raw) == 2 * count:
            items = np.frombuffer(bytearray(raw), "<i2")
        else:
            raise WireError(f"{len(raw)} bytes where {2 * count} are expected")
        delta = floats_of(items, VALUE_TYPES[kind]).to(wide(dtype))
        if not bool(delta.isfinite().all()):
            raise WireError("a coded value is not finite")
        return added(delta, reference, dtype)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """Bytes of the head."""
        return _HEAD.size

    def fixed_nbytes(self, count: int, dtype: torch.dtype) -> int | None:
        """Two bytes per value without the entropy stage; None with it."""
        return _HEAD.size + 2 * count if self.stage == "raw" else None
