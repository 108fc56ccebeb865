"""Large vectors in separate memory pages."""

from __future__ import annotations

import sys

import pytest
import torch

from ssfl.core.pages import LARGE_BYTES, empty_apart


@pytest.mark.parametrize("bytes_", [0, 4, LARGE_BYTES - 4, LARGE_BYTES, LARGE_BYTES + 4])
def test_a_vector_like_another_in_memory_of_its_own(bytes_: int) -> None:
    like = torch.arange(bytes_ // 4, dtype=torch.float32)
    vector = empty_apart(like)
    assert (vector.shape, vector.dtype, vector.device) == (like.shape, like.dtype, like.device)
    vector.fill_(7.0)
    assert like.equal(torch.arange(bytes_ // 4, dtype=torch.float32))
    assert bool((vector == 7.0).all())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_go_back_with_the_vector() -> None:
    def resident_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    like = torch.zeros(8 * LARGE_BYTES // 4)
    before = resident_bytes()
    vector = empty_apart(like).fill_(1.0)
    view = vector[5:]
    assert resident_bytes() - before > 7 * LARGE_BYTES
    del vector
    assert float(view[0]) == 1.0
    del view
    assert resident_bytes() - before < LARGE_BYTES
