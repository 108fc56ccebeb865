"""Tensors between processes of one machine: small messages, and tensors in anonymous shared memory.

An arena is a memory file that both sides map. It has no name in any directory, so the operating system frees it when
the processes end, also after kill -9.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import cloudpickle
import torch
from torch import Tensor

_ALIGN = 64


class Arena:
    """A growing block of shared memory; `put` copies a tensor into it, `get` returns a view."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _memory_file() if fd is None else fd
        self.used = 0
        self._map: mmap.mmap | None = None
        self._block = torch.empty(0, dtype=torch.uint8)

    def reset(self) -> None:
        """Reuse the memory from the beginning."""
        self.used = 0

    def put(self, tensor: Tensor) -> int:
        """Copy a tensor into the arena. Returns its offset."""
        size = tensor.numel() * tensor.element_size()
        offset = self.used
        self.used += -(-size // _ALIGN) * _ALIGN
        if self.used > self._block.numel():
            self._grow(max(self.used, 2 * self._block.numel()))
        flat = tensor.detach().contiguous().view(-1)
        self._block[offset : offset + size].copy_(flat.view(torch.uint8))
        return offset

    def get(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A view of the tensor at an offset, valid until the other side reuses the memory."""
        size = dtype.itemsize
        for n in shape:
            size *= n
        if offset + size > self._block.numel():
            self._remap(os.fstat(self.fd).st_size)
        return self._block[offset : offset + size].view(dtype).view(shape)

    def holds(self, tensor: Tensor) -> int | None:
        """The offset of a tensor that is a view of this arena; None for others."""
        offset = tensor.data_ptr() - self._block.data_ptr()
        inside = 0 <= offset < self._block.numel()
        return offset if inside and tensor.is_contiguous() else None

    def close(self) -> None:
        """Close the file; existing views keep their mapping."""
        self._block = torch.empty(0, dtype=torch.uint8)
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _grow(self, size: int) -> None:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self.fd, size)
        self._remap(size)

    def _remap(self, size: int) -> None:
        # The old mapping is dropped, not closed: views of it may still be alive.
        self._map = mmap.mmap(self.fd, size)
        self._block = torch.frombuffer(self._map, dtype=torch.uint8)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ssfl", 0)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Sender(cloudpickle.Pickler):
    """Pickles a message; tensors are written to `arena`, or sent as offsets if `known` returns one."""

    def __init__(
        self, file: io.BytesIO, arena: Arena, sent: SentTensors, known: Callable[[Tensor], int | None] | None
    ) -> None:
        super().__init__(file)
        self._arena, self._sent, self._known = arena, sent, known

    def persistent_id(self, obj: Any) -> Any:
        """A handle for a tensor, None for everything else."""
        if type(obj) is not Tensor:
            return None
        shape = tuple(obj.shape)
        if self._known is not None and (offset := self._known(obj)) is not None:
            return ("returned", offset, shape, obj.dtype)
        return ("sent", self._sent.offset(obj, self._arena), shape, obj.dtype)


class SentTensors:
    """The tensors in an arena since its reset, so that a tensor is written once for many messages."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[Any, ...], int] = {}
        self._tensors: dict[int, Tensor] = {}

    def offset(self, tensor: Tensor, arena: Arena) -> int:
        """The tensor's offset; writes it first if necessary."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in self._offsets or not tensor.numel():
            self._offsets[key] = arena.put(tensor)
            self._tensors[self._offsets[key]] = tensor  # keeps it alive, so that its address stays unique
        return self._offsets[key]

    def original(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The tensor object that was written at an offset, if it has this shape and type."""
        tensor = self._tensors.get(offset)
        same = tensor is not None and tuple(tensor.shape) == shape and tensor.dtype == dtype
        return tensor if same else None


class Receiver(pickle.Unpickler):
    """Reads a message; `resolve` turns handles into tensors. Only for bytes from our own child processes.

    A tensor that occurs twice in the message (a client's model in its reply and in its state) is read as one tensor.
    """

    def __init__(self, raw: bytes, resolve: Callable[[Any], Tensor]) -> None:
        super().__init__(io.BytesIO(raw))
        self._resolve = resolve
        self._resolved: dict[Any, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        """The tensor of a handle."""
        if pid not in self._resolved:
            self._resolved[pid] = self._resolve(pid)
        return self._resolved[pid]


def dumps(
    message: Any,
    arena: Arena,
    sent: SentTensors | None = None,
    known: Callable[[Tensor], int | None] | None = None,
) -> bytes:
    """Pickle a message, with its tensors in the arena."""
    file = io.BytesIO()
    Sender(file, arena, SentTensors() if sent is None else sent, known).dump(message)
    return file.getvalue()
