"""Quantisers after a random rotation, for comparison only: DRIVE (1 bit) and EDEN (1 to 4 bits).

Vargaftik et al. 2021 and 2022. A randomised Hadamard transform makes coordinates nearly normal; each is sent as the
index of a Lloyd-Max centroid of the normal distribution; one scale per vector makes the estimate unbiased over
rotations, or (here) minimises the squared error. They are not in ssfl: bench_codec shows that a uniform step with
entropy coding has a smaller error at equal bytes from 2 bits on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 1 << 13
LLOYD_STEPS = 300
SAMPLES = 20_000


def rotated_error(delta: Tensor, bits: int, seed: int = 0) -> tuple[float, float]:
    """(bytes per value, relative error) of a vector [n] with rotation, `bits` per value, a float32 scale per block."""
    count = len(delta)
    padded = torch.nn.functional.pad(delta, (0, -count % BLOCK)).view(-1, BLOCK)
    signs = torch.randint(0, 2, (BLOCK,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    turned = hadamard(padded * signs)
    scale = turned.norm(dim=1, keepdim=True) / math.sqrt(BLOCK)
    centroids = lloyd_max(bits)
    bounds = (centroids[1:] + centroids[:-1]) / 2
    chosen = centroids[torch.bucketize(turned / scale.clamp(min=1e-30), bounds)]
    best = (turned * chosen).sum(1, keepdim=True) / (chosen * chosen).sum(1, keepdim=True)
    found = (hadamard(chosen * best) * signs).view(-1)[:count]
    size = (padded.numel() * bits / 8 + 4 * len(padded)) / count
    return size, float((found - delta).norm() / delta.norm())


def hadamard(rows: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of rows [m, 2^k]; its own inverse."""
    count, size = rows.shape
    out, half = rows, 1
    while half < size:
        pairs = out.reshape(count, -1, 2, half)
        out = torch.cat([pairs[:, :, :1] + pairs[:, :, 1:], pairs[:, :, :1] - pairs[:, :, 1:]], dim=2)
        half *= 2
    return out.reshape(count, size) / math.sqrt(size)


def lloyd_max(bits: int) -> Tensor:
    """The 2^bits centroids of least squared error for a standard normal variable, ascending."""
    grid = torch.linspace(-6, 6, SAMPLES, dtype=torch.float64)
    weight = torch.exp(-grid * grid / 2)
    centroids = torch.linspace(-2, 2, 2**bits, dtype=torch.float64) if bits else torch.zeros(1)
    for _ in range(LLOYD_STEPS):
        cells = torch.bucketize(grid, (centroids[1:] + centroids[:-1]) / 2)
        mass = torch.zeros_like(centroids).index_add_(0, cells, weight)
        moment = torch.zeros_like(centroids).index_add_(0, cells, weight * grid)
        centroids = moment / mass
    return centroids.float()
