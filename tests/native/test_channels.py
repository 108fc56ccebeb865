"""Gathering and scattering channels: the bits of `index_select` and `index_copy_`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.native import available
from ssfl.native.library import address, kernels
from ssfl.native.memory_bound.channels import fits, gather, scatter
from tests.support.channels import back_by_pytorch, by_pytorch

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
LAST = torch.channels_last
SIZES = st.one_of(st.integers(1, 70), st.sampled_from((64, 128, 512)))


def chosen(count: int, density: float, generator: torch.Generator) -> Tensor:
    """Ascending indices below `count`: some, none or all."""
    return (torch.rand(count, generator=generator) < density).nonzero()[:, 0]


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 5),
    size=SIZES,
    side=st.integers(1, 5),
    density=st.floats(0, 1),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_images(count: int, size: int, side: int, density: float, last: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, side, side, generator=generator)
    x = x.contiguous(memory_format=LAST) if last else x
    columns = chosen(size, density, generator)
    taken = gather(x, None, columns)
    assert taken.equal(by_pytorch(x, None, columns))
    back = scatter(taken, None, columns, (count, size))
    assert back.equal(back_by_pytorch(taken, None, columns, (count, size)))
    if last and len(columns) > 1:  # one channel has both formats at once
        assert taken.is_contiguous(memory_format=LAST)
        assert back.is_contiguous(memory_format=LAST)


@settings(max_examples=80, deadline=None)
@given(
    out=SIZES,
    inner=SIZES,
    kernel=st.sampled_from(((), (1, 1), (3, 3), (5, 2))),
    densities=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    every=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_filters(
    out: int,
    inner: int,
    kernel: tuple[int, ...],
    densities: tuple[float, float],
    every: tuple[bool, bool],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(out, inner, *kernel, generator=generator)
    rows = None if every[0] else chosen(out, densities[0], generator)
    columns = None if every[1] else chosen(inner, densities[1], generator)
    taken = gather(x, rows, columns)
    assert taken.equal(by_pytorch(x, rows, columns))
    back = scatter(taken, rows, columns, (out, inner))
    assert back.equal(back_by_pytorch(taken, rows, columns, (out, inner)))


@pytest.mark.parametrize("size", [3, 16, 21, 64])
def test_nothing_is_read_or_written_beyond_the_ends(size: int) -> None:
    """Also for rows shorter than a register; the memory around them is NaN before and after."""
    rows, columns = 7, torch.arange(0, size, 2)
    shape = (rows, size, 1)
    whole, part = (
        torch.full((rows * size + 64,), torch.nan),
        torch.full((rows * len(columns) + 64,), torch.nan),
    )
    inner = whole[32:-32].copy_(torch.randn(rows * size)), part[32:-32]
    numbers = (0, -1, address(columns), len(columns))
    kernels.gather_slices(shape, *numbers, address(inner[0]), address(inner[1]))
    assert inner[1].equal(inner[0].view(rows, size)[:, ::2].flatten())
    inner[0].fill_(1)
    kernels.scatter_slices(shape, *numbers, address(inner[1]), address(inner[0]))
    assert inner[0].view(rows, size)[:, ::2].flatten().equal(inner[1])
    assert not inner[0].view(rows, size)[:, 1::2].any()
    for edge in (whole[:32], whole[-32:], part[:32], part[-32:]):
        assert bool(edge.isnan().all())


def test_what_is_left_to_pytorch() -> None:
    x = torch.randn(2, 4, 3, 3)
    last = x.contiguous(memory_format=LAST)
    assert fits(x)
    assert fits(last)
    assert not fits(last, torch.arange(1))
    assert not fits(x.double())
    assert not fits(x[:, :, :, :2])
    assert not fits(torch.randn(3))


def test_what_does_not_fit_is_refused() -> None:
    x, numbers = torch.randn(2, 4, 3, 3), torch.tensor([0, 2])
    with pytest.raises(ValueError, match=r"x is torch.float64 \[2, 4, 3, 3\] on cpu; float32"):
        gather(x.double(), None, numbers)
    with pytest.raises(ValueError, match=r"columns are torch.int32 \[2\]; int64 \[n\] is needed"):
        gather(x, None, numbers.int())
    with pytest.raises(ValueError, match=r"rows are torch.int64 \[1, 2\]"):
        gather(x, numbers[None], None)
    with pytest.raises(ValueError, match="columns are not contiguous"):
        gather(x, None, torch.arange(4)[::2])
    with pytest.raises(ValueError, match=r"x is \[2, 4, 3, 3\]; 2 rows and 2 columns are needed"):
        scatter(x, None, numbers, (2, 4))
    for wrong in ([0, 4], [-1, 2], [2, 0], [1, 1]):
        with pytest.raises(IndexError, match="not there, or that do not ascend"):
            gather(x, None, torch.tensor(wrong))
