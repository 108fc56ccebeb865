"""Reads bytes from a network: every length is checked before it is used."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssfl.errors import UserError

VALUE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of values, by their number in messages."""


class WireError(UserError):
    """Bytes that are not a valid message, or do not match what the receiver holds."""


@final
class Reader:
    """Reads a buffer sequentially. Raises WireError at its end."""

    def __init__(self, raw: bytes | memoryview) -> None:
        self.raw = memoryview(raw)
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes not read yet."""
        return len(self.raw) - self.at

    def take(self, count: int) -> memoryview:
        """The next `count` bytes. Raises WireError if fewer are left."""
        if count > self.left:
            raise WireError(f"{count} bytes are declared, but only {self.left} are left")
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, size: int) -> int:
        """The next unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def values(self, count: int, dtype: torch.dtype) -> Tensor:
        """The next `count` values, as a copy."""
        raw = bytearray(self.take(count * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def bits(self, count: int) -> Tensor:
        """The next `count` packed bits as bool [count]. Raises WireError if padding bits are set."""
        return unpacked_bits(self.take(bits_nbytes(count)), count)

    def end(self) -> None:
        """Raises WireError unless all bytes were read."""
        if self.left:
            raise WireError(f"{self.left} bytes are left over")


def bits_nbytes(count: int) -> int:
    """Number of bytes of `count` packed bits."""
    return -(-count // 8)


def packed_bits(bits: Tensor) -> bytes:
    """Bits [n] (bool), 8 a byte, from the most significant bit."""
    return np.packbits(bits.detach().cpu().numpy()).tobytes()


def unpacked_bits(raw: bytes | bytearray | memoryview, count: int) -> Tensor:
    """The bits [count] of `packed_bits`. Raises WireError if padding bits are set."""
    packed = np.frombuffer(raw, np.uint8)
    if count % 8 and packed[-1] & ((1 << (8 - count % 8)) - 1):
        raise WireError("the unused bits of a mask's last byte are not zero")
    return torch.from_numpy(np.unpackbits(packed, count=count).view(np.bool_))


def octets(raw: bytes | memoryview) -> Tensor:
    """A copy of bytes as a vector (uint8), for checkpoints and worker processes."""
    return (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8) if len(raw) else torch.empty(0, dtype=torch.uint8)
    )


def raw_bytes(values: Tensor) -> memoryview:
    """The bytes of values [n], little endian; copied only if they are not contiguous in host memory."""
    flat = values.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def items_of(values: Tensor) -> NDArray[Any]:
    """The bits of values [n] as signed integers of the same size; shares memory if it is on the host."""
    return np.frombuffer(raw_bytes(values), f"<i{values.element_size()}")


def floats_of(items: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """The inverse of `items_of`; shares memory."""
    whole = torch.from_numpy(items.view(f"<i{items.itemsize}"))
    return whole.view(dtype) if len(items) else torch.empty(0, dtype=dtype)
