"""The mean over many clients of long vectors: more clients than are summed together, longer than one chunk."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ssfl.core import aggregate
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
    assert (
        error <= 18 * 2.0**-24 * size_of_sum
    ).all()  # for any number of clients: groups are added in float64
    assert rows.equal(before)


@pytest.mark.parametrize("clients", [1, TOGETHER - 1, TOGETHER, TOGETHER + 1, 2 * TOGETHER + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_vectors_are_added_as_they_come_with_the_same_bits(
    clients: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(clients, 1001, generator=torch.Generator().manual_seed(clients), dtype=dtype)
    weights = [float(k + 1) for k in range(clients)]
    together = weighted_mean(zip(rows, weights, strict=True))
    alive: list[weakref.ref[torch.Tensor]] = []

    def replies() -> Iterator[tuple[torch.Tensor, float]]:
        for row, weight in zip(rows, weights, strict=True):
            assert sum(r() is not None for r in alive) <= 1
            x = row.clone()
            alive.append(weakref.ref(x))
            yield x, weight
            del x

    monkeypatch.setattr(aggregate, "LARGE_BYTES", 0)
    assert weighted_mean(replies(), weights).equal(together)


@pytest.mark.parametrize("expected", [3, TOGETHER + 1])
def test_who_stays_away_is_not_in_the_mean(expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "LARGE_BYTES", 0)
    rows = torch.randn(expected - 1, 50)
    mean = weighted_mean(((row, 2.0) for row in rows), [2.0] * expected)
    torch.testing.assert_close(mean, rows.mean(0))


@pytest.mark.parametrize("expected", [[0.0], [5.0], [5.0] * (TOGETHER + 1)])
def test_a_mean_over_no_examples_is_refused_however_it_is_summed(
    expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregate, "LARGE_BYTES", 0)
    with pytest.raises(ValueError, match="a mean over no clients"):
        weighted_mean([(torch.ones(3), 0.0)], expected)


def test_an_empty_vector_stays_empty() -> None:
    assert weighted_mean([(torch.zeros(0), 1.0)]).shape == (0,)
