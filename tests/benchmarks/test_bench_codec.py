"""The codec benchmark measures correctly: entropies, rotation quantisers, overlaps."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.bench_codec import binary_entropy_bytes, parser, symbol_entropy_bytes
from benchmarks.rotation import BLOCK, hadamard, lloyd_max, rotated_error


def test_the_options() -> None:
    chosen = parser().parse_args(["--quick", "--trials", "2"])
    assert chosen.quick
    assert chosen.trials == 2


def test_the_entropy_of_a_mask_by_hand() -> None:
    """A layer of 8 with a quarter kept, and one of 8 with all kept: 8 H(1/4) bits."""
    bits = torch.tensor([True, True, *[False] * 6, *[True] * 8])
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    segments = [("a", 0, 8), ("b", 8, 16)]
    assert binary_entropy_bytes(bits, segments) == pytest.approx(8 * entropy / 8)


def test_the_entropy_of_symbols_by_hand() -> None:
    """Two values at +-1: rms 1, step 0.5, symbols +-2: one bit each."""
    delta = torch.tensor([1.0, -1.0] * 8)
    assert symbol_entropy_bytes(delta, [16], 0.5) == pytest.approx(2.0)
    assert symbol_entropy_bytes(torch.zeros(4), [4], 0.5) == 0


def test_a_hadamard_transform_turns_and_turns_back() -> None:
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = hadamard(rows)
    torch.testing.assert_close(turned.norm(dim=1), rows.norm(dim=1))
    torch.testing.assert_close(hadamard(turned), rows)
    by_hand = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    torch.testing.assert_close(hadamard(torch.eye(4)), by_hand)


def test_lloyd_max_centroids_are_the_published_ones() -> None:
    """Max 1960, table I: 1 bit 0.7980, 2 bits 0.4528 and 1.510."""
    torch.testing.assert_close(lloyd_max(1), torch.tensor([-0.7979, 0.7979]), rtol=0, atol=2e-4)
    torch.testing.assert_close(
        lloyd_max(2), torch.tensor([-1.510, -0.4528, 0.4528, 1.510]), rtol=0, atol=2e-3
    )


def test_rotation_has_the_error_that_its_papers_state() -> None:
    """DRIVE (Vargaftik et al. 2021): 1 bit has the error 1 - 2/pi of the squared norm at the best scale."""
    spiky = torch.zeros(2 * BLOCK)
    spiky[::100] = torch.randn(len(spiky[::100]), generator=torch.Generator().manual_seed(1))
    size, error = rotated_error(spiky, 1)
    assert size == pytest.approx(1 / 8 + 4 / BLOCK)
    assert error**2 == pytest.approx(1 - 2 / math.pi, rel=0.03)
