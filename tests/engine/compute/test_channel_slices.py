"""Gathering and scattering channels: values and gradients equal PyTorch's indexing, with and without kernels."""

from __future__ import annotations

import pytest
import torch

from ssfl.engine.compute.channel_slices import spread, take
from tests.support.channels import back_by_pytorch, by_pytorch

LAST = torch.channels_last


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_indexing(dtype: torch.dtype, last: bool) -> None:
    """With kernels and with PyTorch, for a filter and for images, including second-order gradients."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 6])
    for picked in (rows, None) if not last else (None,):
        x = torch.randn(6, 9, 3, 2, generator=generator, dtype=dtype)
        x = x.contiguous(memory_format=LAST) if last else x
        found = []
        for ours in (True, False):
            leaf = x.clone().requires_grad_()
            y = take(leaf, picked, columns) if ours else by_pytorch(leaf, picked, columns)
            z = spread(y.pow(2), picked, columns, (6, 9)) if ours else y.pow(2)
            (first,) = torch.autograd.grad(z.pow(2).sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(first.pow(2).sum(), leaf)
            found.append((first.detach(), second))
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs)
            assert mine.stride() == x.stride()


def test_gradcheck() -> None:
    numbers = torch.tensor([1, 3])
    x = torch.randn(4, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: take(t, numbers, numbers), x)
    small = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: spread(t, numbers, numbers, (4, 5)), small)


def test_a_gradient_of_a_filter_may_have_its_channels_last() -> None:
    """Libraries return such gradients for channels-last images; the full gradient has the filter's memory format."""
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)
    numbers = torch.tensor([1, 4, 5])
    for rows in (numbers, None):
        small = take(weight, rows, numbers)
        gradient = torch.randn(small.shape).contiguous(memory_format=LAST)
        (found,) = torch.autograd.grad(small, weight, gradient)
        assert found.is_contiguous()
        assert found.equal(back_by_pytorch(gradient, rows, numbers, (8, 8)))


def test_all_channels_are_the_tensor_itself() -> None:
    x = torch.randn(2, 3)
    assert take(x, torch.arange(2), torch.arange(3)) is x
    assert spread(x, None, torch.arange(3), (2, 3)) is x
