"""Convolutions of small groups, compared with PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ssfl.native import available
from ssfl.native.group_conv import MOST_CHANNELS_IN, group_conv, serves

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)


def near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 4),
    groups=st.integers(1, 4),
    inner=st.integers(1, 5),
    out=st.integers(1, 9),
    height=st.integers(1, 11),
    width=st.integers(1, 20),
)
def test_values_and_gradients_are_pytorchs(
    images: int, groups: int, inner: int, out: int, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, groups * inner, height, width, generator=generator).requires_grad_()
    filters = torch.randn(groups * out, inner, 3, 3, generator=generator).requires_grad_()
    direction = torch.randn(images, groups * out, height, width, generator=generator)
    y = group_conv(x, filters, groups)
    wide = [t.detach().double().requires_grad_() for t in (x, filters)]
    wanted = conv2d(wide[0], wide[1], padding=1, groups=groups)
    near(y.detach(), wanted.detach())
    pairs = zip(
        torch.autograd.grad(y, [x, filters], direction),
        torch.autograd.grad(wanted, wide, direction.double()),
        strict=True,
    )
    for mine, theirs in pairs:
        near(mine, theirs)


def test_images_that_need_no_gradient_get_none() -> None:
    x, filters = torch.randn(2, 3, 8, 8), torch.randn(12, 1, 3, 3, requires_grad=True)
    y = group_conv(x, filters, 3)
    (found,) = torch.autograd.grad(y.sum(), filters)
    (wanted,) = torch.autograd.grad(conv2d(x, filters, padding=1, groups=3).sum(), filters)
    near(found, wanted)


def test_a_gradient_of_a_gradient_is_pytorchs() -> None:
    x, filters = torch.randn(2, 4, 5, 5), torch.randn(6, 2, 3, 3)
    found = []
    for native in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, filters)]
        a, b = leaves
        y = group_conv(a, b, 2) if native else conv2d(a, b, padding=1, groups=2)
        gradients = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        penalty = gradients[0].square().sum() + gradients[1].square().sum()
        found.append(torch.autograd.grad(penalty, leaves))
    for mine, theirs in zip(*found, strict=True):
        near(mine, theirs)


@pytest.mark.parametrize(
    ("conv", "dtype"),
    [
        (nn.Conv2d(2, 4, 3, padding=1, stride=2), torch.float32),
        (nn.Conv2d(2, 4, 5, padding=2), torch.float32),
        (nn.Conv2d(2, 4, 3), torch.float32),
        (nn.Conv2d(2, 4, 3, padding=1, groups=2), torch.float32),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), torch.float32),
        (nn.Conv2d(MOST_CHANNELS_IN + 1, 4, 3, padding=1), torch.float32),
        (nn.Conv2d(2, 4, 3, padding=1), torch.float64),
        (nn.ConvTranspose2d(2, 4, 3, padding=1), torch.float32),
    ],
)
def test_what_the_kernels_leave_to_pytorch(conv: nn.Module, dtype: torch.dtype) -> None:
    assert serves(nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 6, 4, 4))
    assert serves(nn.Conv2d(2, 4, 3, padding="same"), torch.zeros(1, 6, 4, 4))
    assert not serves(conv, torch.zeros(1, 6, 4, 4, dtype=dtype))


def test_filters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 6 channels in 2 groups"):
        group_conv(torch.zeros(1, 6, 4, 4), torch.zeros(4, 2, 3, 3), 2)
    with pytest.raises(ValueError, match="contiguous float32"):
        group_conv(torch.zeros(1, 4, 4, 4), torch.zeros(4, 2, 3, 3).double(), 2)
