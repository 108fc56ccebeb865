"""Lossless coding of floats: differences of their order numbers, byte planes, zstd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from ssfl.core.reading import Reader, floats_of, items_of
from ssfl.wire.entropy import Array, from_planes, inflated, planes_of, squeezed, unzigzag, zigzag
from ssfl.wire.value_codec import ValueCodec, Vector


@final
@dataclass(frozen=True)
class Lossless(ValueCodec):
    """Exact, also for NaN, infinities and -0.0. Trained weights differ from the received ones in few high bits."""

    code = 1
    exact = True

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode as one zstd frame of byte planes."""
        start = _order_numbers(_reference(vector.reference, len(vector.values), vector.values.dtype))
        difference = _order_numbers(vector.values) - start  # modulo 2^8b
        return squeezed(planes_of(zigzag(difference.view(f"i{difference.itemsize}"))))

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode the exact values."""
        size = dtype.itemsize
        difference = unzigzag(from_planes(inflated(reader.take(reader.left), size * count), count, size))
        numbers = _order_numbers(_reference(reference, count, dtype)) + difference.view(f"u{size}")
        return _floats(numbers, dtype)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """No metadata: 0."""
        return 0


def _reference(reference: Tensor | None, count: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype).expand(count) if reference is None else reference.to(dtype)


def _order_numbers(values: Tensor) -> Array:
    """Unsigned integers [n] in the order of the floats: neighbours differ by 1."""
    size = values.element_size()
    bits = items_of(values)
    flipped = np.right_shift(bits, 8 * size - 1).view(f"u{size}")
    np.bitwise_or(flipped, _top_bit(size), out=flipped)
    found: Array = np.bitwise_xor(bits.view(f"u{size}"), flipped)
    return found


def _floats(numbers: Array, dtype: torch.dtype) -> Tensor:
    """The floats of `_order_numbers`."""
    size = numbers.itemsize
    # All bits are one where the number was positive.
    negative = np.right_shift(numbers.view(f"i{size}"), 8 * size - 1).view(f"u{size}")
    flipped = np.bitwise_or(np.bitwise_not(negative), _top_bit(size))
    bits = np.bitwise_xor(numbers, flipped)
    return floats_of(bits, dtype)


def _top_bit(size: int) -> np.generic:
    top: np.generic = np.dtype(f"u{size}").type(1 << (8 * size - 1))
    return top
