"""The mean over many clients of long vectors: more clients than are summed together, longer than one chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssfl.core.aggregate import CHUNK, TOGETHER, weighted_mean


@pytest.mark.parametrize("clients", [1, TOGETHER - 1, TOGETHER, TOGETHER + 1, 2 * TOGETHER + 3])
@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 5])
def test_equal_to_numpys_average(clients: int, size: int) -> None:
    rows = torch.randn(clients, size, generator=torch.Generator().manual_seed(clients))
    weights = [float(k + 1) for k in range(clients)]
    expected, size_of_sum = (
        np.average(r.double().numpy(), axis=0, weights=weights) for r in (rows, rows.abs())
    )
    before = rows.clone()
    mean = weighted_mean(zip(rows, weights, strict=True))
    assert mean.dtype == torch.float32
    error = np.abs(mean.double().numpy() - expected)
    assert (error <= 18 * 2.0**-24 * size_of_sum).all()  # however many clients: groups are added in float64
    assert rows.equal(before)


def test_an_empty_vector_stays_empty() -> None:
    assert weighted_mean([(torch.zeros(0), 1.0)]).shape == (0,)
