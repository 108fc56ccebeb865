"""Large vectors in separate memory pages."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

LARGE_BYTES = 16 << 20
"""Minimum size; smaller vectors use PyTorch's allocator."""


def empty_apart(like: Tensor) -> Tensor:
    """An uninitialised vector of the size and type of `like`; a large one on a CPU in separate pages.

    The pages return to the operating system when the vector is freed. PyTorch's allocator would place the vector
    between activations, which are freed in a different order, and memory would fragment (docs/performance.md).
    """
    if like.device.type != "cpu" or like.nbytes < LARGE_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    pages = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype).view(like.shape)
