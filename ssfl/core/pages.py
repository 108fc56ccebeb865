"""Vectors as large as a large model, in pages of their own."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

LARGE_BYTES = 16 << 20
"""From this size on; smaller vectors come from the allocator that all tensors come from."""


def empty_apart(like: Tensor) -> Tensor:
    """A vector of the size and type of `like`, with anything in it; a large one on a CPU in pages of its own.

    Those go back to the system with the vector. Taken from among the activations of training, which come and go in
    another order, it would leave holes that nothing fits into (docs/performance.md).
    """
    if like.device.type != "cpu" or like.nbytes < LARGE_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty_like(like, memory_format=torch.contiguous_format)
    pages = mmap.mmap(-1, like.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=like.dtype).view(like.shape)
