"""Eight bits per value and one scale per block."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.reading import Reader, WireError, raw_bytes
from ssfl.wire.entropy import inflated, squeezed
from ssfl.wire.uniform import Rounding
from ssfl.wire.value_codec import LARGEST_STEP, NotFiniteError, ValueCodec, Vector, added, checked_steps, wide

Stage = Literal["raw", "zstd"]
STAGES: tuple[Stage, ...] = ("raw", "zstd")
_HEAD = struct.Struct("<BI")  # stage, block
MAX_BLOCK = 1 << 20
LEVELS = 127


@final
@dataclass(frozen=True)
class Int8(ValueCodec):
    """Symbols are delta / scale in -127..127; a block's scale is its largest magnitude / 127, rounded up to bfloat16.

    Error of a value: at most scale / 2 with "nearest", below one scale with "stochastic", which is unbiased (QSGD,
    Alistarh et al. 2017, section 3.1, with the maximum as norm); scale <= largest magnitude of the block / 126.
    """

    code = 3
    block: int = 1024
    """Values that share a scale, 1 to 2^20."""
    rounding: Rounding = "stochastic"
    stage: Stage = "zstd"
    of: Literal["delta", "values"] = "delta"
    """What the largest magnitude is taken from. "values": the larger of delta and values, so that small differences
    have the error of coded values, and small symbols."""

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """True with stochastic rounding."""
        return self.rounding == "stochastic"

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode as scales, then symbols. Raises NotFiniteError."""
        delta = vector.delta
        count = len(delta)
        padded = _in_blocks(delta, self.block)
        measured = padded
        if self.of == "values":
            values = vector.values.to(delta.dtype)
            measured = torch.maximum(padded.abs(), _in_blocks(values, self.block).abs())
        scales = _scales(measured)
        scaled = padded.div_(torch.where(scales > 0, scales, 1.0).to(padded.dtype)[:, None])
        if self.rounding == "stochastic":
            scaled.add_(torch.rand(scaled.shape, dtype=scaled.dtype, generator=draws)).floor_()
        else:
            scaled.round_()
        symbols = scaled.clamp_(-LEVELS, LEVELS).to(torch.int8).view(-1)[:count].numpy()
        data = squeezed(symbols) if self.stage == "zstd" else symbols.tobytes()
        head = _HEAD.pack(STAGES.index(self.stage), self.block)
        return b"".join([head, raw_bytes(scales.to(torch.bfloat16)), data])

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode scale * symbol and add the reference."""
        stage, block = _HEAD.unpack(reader.take(_HEAD.size))
        if stage >= len(STAGES) or not 1 <= block <= MAX_BLOCK:
            raise WireError(f"stage {stage} with blocks of {block} values is unknown")
        blocks = -(-count // block)
        scales = checked_steps(reader.values(blocks, torch.bfloat16).float())
        raw = reader.take(reader.left)
        if STAGES[stage] == "zstd":
            whole = inflated(raw, count)
        elif len(raw) == count:
            whole = bytearray(raw)
        else:
            raise WireError(f"{len(raw)} symbols where {count} are expected")
        symbols = torch.frombuffer(whole, dtype=torch.int8) if count else torch.empty(0, dtype=torch.int8)
        return added(_scaled(symbols, scales.to(wide(dtype)), block), reference, dtype)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """Bytes of head and scales."""
        _, block = _HEAD.unpack(reader.take(_HEAD.size))
        return _HEAD.size + 2 * -(-count() // max(block, 1))

    def fixed_nbytes(self, count: int, dtype: torch.dtype) -> int | None:
        """Without the entropy stage: one byte per value and two per block; None with it."""
        if self.stage == "zstd":
            return None
        return _HEAD.size + 2 * -(-count // self.block) + count


def _in_blocks(values: Tensor, block: int) -> Tensor:
    """Values [n] and zeros as blocks [m, B]."""
    blocks = -(-len(values) // block)
    return torch.nn.functional.pad(values, (0, blocks * block - len(values))).view(blocks, block)


def _scaled(symbols: Tensor, scales: Tensor, block: int) -> Tensor:
    """scale * symbol [n] in the scales' type. Not padded: a sender chooses the block, which may be far above n."""
    out = torch.empty(len(symbols), dtype=scales.dtype)
    rows = len(symbols) // block
    whole = rows * block
    torch.mul(symbols[:whole].view(rows, block), scales[:rows, None], out=out[:whole].view(rows, block))
    torch.mul(symbols[whole:], scales[rows:], out=out[whole:])
    return out


def _scales(blocks: Tensor) -> Tensor:
    """Largest magnitude / 127 of blocks [m, B], rounded up to a bfloat16; float32 [m]."""
    largest = blocks.abs().amax(1) if blocks.numel() else blocks.new_zeros(len(blocks))
    exact = (largest / LEVELS).float().numpy()
    up = ((exact.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    scales = torch.from_numpy(up)
    if not bool((scales <= LARGEST_STEP).all()):
        raise NotFiniteError("values that are not finite, or too large to be coded")
    return scales
