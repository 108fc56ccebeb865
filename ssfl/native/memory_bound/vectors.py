"""Long vectors in one pass: values placed on a mask and taken from it, times a mask, weighted sums; PyTorch's bits."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ssfl.native.library import address, available, kernels


def expands(mask: Tensor, values: Tensor) -> bool:
    """Whether `expand`, `pack`, `multiply_by_mask_` take these: a bool mask, float32 values, contiguous, on the CPU."""
    plain = mask.dtype == torch.bool and values.dtype == torch.float32 and not values.requires_grad
    here = mask.device.type == values.device.type == "cpu"
    return available() and plain and here and mask.is_contiguous() and values.is_contiguous()


def expand(mask: Tensor, values: Tensor) -> Tensor:
    """[P] with `values` in order where `mask [P]` is True and 0 elsewhere. Raises ValueError if counts differ."""
    out = torch.empty(mask.shape, dtype=torch.float32)
    threads = torch.get_num_threads()
    kept = kernels.expand(address(mask), mask.numel(), address(values), values.numel(), address(out), threads)
    if kept != values.numel():
        raise ValueError(f"{values.numel()} values for a mask that keeps {kept}")
    return out


def pack(mask: Tensor, values: Tensor) -> Tensor:
    """`values[mask]` of values [P] -> [nnz], the inverse of `expand`. Raises ValueError for a mask of another shape.

    PyTorch would list the indices in memory first.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values {list(values.shape)} and a mask {list(mask.shape)}")
    out = torch.empty(int(mask.count_nonzero()), dtype=torch.float32)
    kernels.pack(address(mask), mask.numel(), address(values), out.numel(), address(out))
    return out


def multiply_by_mask_(values: Tensor, mask: Tensor) -> Tensor:
    """`values.mul_(mask)` for a mask of the same shape; PyTorch would convert the mask in memory first."""
    if values.shape != mask.shape:
        raise ValueError(f"values {list(values.shape)} and a mask {list(mask.shape)}")
    kernels.multiply_by_mask(address(mask), mask.numel(), address(values), torch.get_num_threads())
    return values


def sums(vectors: Sequence[Tensor]) -> bool:
    """Whether `weighted_sum` supports these vectors: float32 of equal size on the CPU."""
    first = vectors[0]
    return available() and all(
        v.dtype == torch.float32
        and v.device.type == "cpu"
        and v.shape == first.shape
        and v.is_contiguous()
        and not v.requires_grad
        for v in vectors
    )


def weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
    """out [P] = weights[0] * vectors[0] + weights[1] * vectors[1] + ..., added in that order in float32."""
    if len(weights) != len(vectors) or not sums([*vectors, out]):
        raise ValueError(
            "float32 vectors of one size on the CPU are needed, one weight each, and an output vector"
        )
    places, factors = array("Q", map(address, vectors)), array("f", weights)
    kernels.weighted_sum(
        places.buffer_info()[0],
        factors.buffer_info()[0],
        len(vectors),
        out.numel(),
        address(out),
        torch.get_num_threads(),
    )
    return out
