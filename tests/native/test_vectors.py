"""Expanding and summing vectors: the bits of PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.core.aggregate import weighted_mean
from ssfl.core.masks import keep_
from ssfl.core.payloads import Support, pack_sparse
from ssfl.native import available
from ssfl.native.memory_bound.vectors import expand, expands, multiply_by_mask_, pack, sums, weighted_sum

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_values_go_to_their_places(size: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < density
    kept = int(mask.count_nonzero())
    values = torch.randn(kept, generator=generator)
    wanted = torch.zeros(size)
    wanted[mask] = values
    assert expand(mask, values).equal(wanted)
    assert Support.of(mask).scatter(values).equal(wanted)
    assert pack(mask, wanted + ~mask).equal(values)
    assert pack_sparse(wanted, mask).values.equal(values)


@pytest.mark.parametrize("kept", [0, 1, 16, 17, 1000])
def test_the_last_values_are_not_read_past_their_end(kept: int) -> None:
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[1000 - kept :] = True  # whole registers reach the end of both vectors
    around = torch.full((kept + 32,), float("nan"))
    values = around[16 : 16 + kept].copy_(torch.arange(1.0, kept + 1))
    out = expand(mask, values)
    assert not bool(out.isnan().any())
    assert out[mask].equal(values)


@pytest.mark.parametrize(("size", "given_"), [(3, 2), (3, 4), (100, 0), (100, 99), (100, 40), (0, 1)])
def test_another_number_of_values_is_refused(size: int, given_: int) -> None:
    with pytest.raises(ValueError, match=f"{given_} values for a mask that keeps {size}"):
        expand(torch.ones(size, dtype=torch.bool), torch.ones(given_))


def test_doubles_and_gradients_go_pytorchs_way() -> None:
    mask = torch.ones(2, dtype=torch.bool)
    assert expands(mask, torch.ones(2))
    assert not expands(mask, torch.ones(2).double())
    assert not expands(mask, torch.ones(2).requires_grad_())
    assert not expands(mask.to("meta"), torch.ones(2))
    assert Support.of(mask).scatter(torch.ones(2).double()).dtype == torch.float64


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), clients=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_a_mask_drops_becomes_zero(size: int, clients: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(clients, size, generator=generator)
    values[0, 0] = float("nan") if seed % 2 else -0.0
    mask = torch.rand(clients, size, generator=generator) < 0.5
    wanted = values * mask
    found = keep_(values.clone(), mask)
    assert found.view(torch.int32).equal(wanted.view(torch.int32))  # -0 and NaN too
    shared = keep_(values.clone(), mask[0])  # one mask for all vectors: computed by PyTorch
    torch.testing.assert_close(shared, values * mask[0], equal_nan=True)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask"):
        multiply_by_mask_(torch.ones(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a mask"):
        pack(torch.ones(2, dtype=torch.bool), torch.ones(3))


def chain(vectors: list[Tensor], weights: list[float]) -> Tensor:
    """One product, then fused additions, as PyTorch writes them."""
    out = vectors[0] * weights[0]
    for x, w in zip(vectors[1:], weights[1:], strict=True):
        out.add_(x, alpha=w)
    return out


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 300), count=st.integers(1, 17), seed=st.integers(0, 99))
def test_a_sum_has_the_bits_of_pytorchs_chain(isa: str, size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(size, generator=generator) for _ in range(count)]
    weights = torch.rand(count, generator=generator).tolist()
    found = weighted_sum(vectors, weights, torch.empty(size))
    wide = torch.stack([x.double() * w for x, w in zip(vectors, weights, strict=True)])
    torch.testing.assert_close(found, wide.sum(0).float(), rtol=0, atol=3e-7 * float(wide.abs().sum(0).max()))
    # Both use fused multiply-add; SSE2 cannot.
    if isa != "sse2" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert found.equal(chain(vectors, weights))


def test_one_vector_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="of one size"):
        weighted_sum([torch.ones(3), torch.ones(2)], [1.0, 1.0], torch.empty(3))
    assert not sums([torch.ones(3), torch.ones(3).double()])


def test_a_mean_of_many_clients_is_the_one_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    items = [(torch.randn(70, generator=generator), float(k)) for k in range(1, 41)]
    total = sum(w for _, w in items)
    wanted = sum((x.double() * w for x, w in items), torch.zeros(70, dtype=torch.float64)) / total
    torch.testing.assert_close(weighted_mean(items), wanted.float(), rtol=0, atol=2e-7)
