"""The interface of codecs, which encode a vector, or its difference to values that both sides hold, as bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ssfl.core.reading import Reader, WireError

LARGEST_STEP = 2.0**64
"""Steps and scales above this are refused: their products with 31-bit symbols must stay finite."""


class NotFiniteError(ArithmeticError):
    """Values that cannot be coded: NaN, infinite, or too large; the training has diverged."""


@final
@dataclass(frozen=True)
class Vector:
    """The values [n] to code, the receiver's reference [n] or None, and the number of values in each tensor."""

    values: Tensor
    reference: Tensor | None
    counts: Sequence[int]

    @property
    def delta(self) -> Tensor:
        """values - reference in the wide type, as a new tensor; without a reference a copy of the values."""
        values = self.values.to(wide(self.values.dtype))
        if self.reference is not None:
            return values - self.reference.to(values.dtype)
        return values.clone() if values is self.values else values


class ValueCodec(ABC):
    """A codec of values; its fields are settings of the sender. The receiver needs only `code`."""

    code: ClassVar[int]
    """Number of the codec in messages."""
    draws: ClassVar[bool] = False
    """Whether the encoder uses random draws."""
    exact: ClassVar[bool] = False
    """Whether decoding restores the values bit for bit."""

    @abstractmethod
    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        """Encode a vector. Raises NotFiniteError."""

    @staticmethod
    @abstractmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        """Decode values [count] from data that fill the reader. Raises WireError."""

    @staticmethod
    @abstractmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        """Number of bytes that describe the symbols: types, sizes, steps, scales. count: gives the number of values."""

    def fixed_nbytes(self, count: int, dtype: torch.dtype) -> int | None:
        """Number of bytes for any `count` values; None if it depends on the values."""
        return None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of `dtype` are decoded: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def added(delta: Tensor, reference: Tensor | None, dtype: torch.dtype) -> Tensor:
    """reference + delta in the wide type, as `dtype`; overwrites `delta`."""
    if reference is not None:
        delta.add_(reference.to(delta.dtype))
    return delta.to(dtype)


def checked_steps(steps: Tensor) -> Tensor:
    """Returns the steps [s]. Raises WireError if one is negative, too large or not finite."""
    if bool(((steps >= 0) & (steps <= LARGEST_STEP)).all()):
        return steps
    raise WireError("a step is not finite, negative or above 2^64")
