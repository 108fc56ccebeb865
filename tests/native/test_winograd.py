"""Winograd convolutions compared with PyTorch in float64, for each instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ssfl.native import available
from ssfl.native.winograd import fits, serves, winograd_conv

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
LAST = torch.channels_last


def error(found: Tensor, wanted: Tensor) -> float:
    """The error relative to the norm."""
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def drawn(images: int, inner: int, out: int, height: int, width: int, stride: int = 1) -> list[Tensor]:
    """x, filters, bias, dy."""
    generator = torch.Generator().manual_seed(0)
    map_of_y = ((height + stride - 1) // stride, (width + stride - 1) // stride)
    shapes = ((images, inner, height, width), (out, inner, 3, 3), (out,), (images, out, *map_of_y))
    x, filters, bias, dy = (torch.randn(shape, generator=generator) for shape in shapes)
    return [x.contiguous(memory_format=LAST), filters, bias, dy]


def direct(leaves: list[Tensor], stride: int = 1) -> Tensor:
    """conv2d of x, filters and an optional bias."""
    return conv2d(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None, stride, padding=1)


def compare(inputs: list[Tensor], with_bias: bool, stride: int = 1) -> None:
    """Values within 1e-6, gradients within 1e-5 of their norms."""
    *leaves, dy = inputs
    mine = [t.clone().requires_grad_() for t in leaves[: 2 + with_bias]]
    wide = [t.detach().double().requires_grad_() for t in mine]
    y = winograd_conv(*mine, stride=stride)
    wanted = direct(wide, stride)
    assert y.is_contiguous(memory_format=LAST)
    assert error(y.detach(), wanted.detach()) < 1e-6
    found = torch.autograd.grad(y, mine, dy)
    for m, t in zip(found, torch.autograd.grad(wanted, wide, dy.double()), strict=True):
        assert error(m, t) < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 5),
    inner=st.sampled_from((16, 32, 48)),
    out=st.sampled_from((16, 32, 48, 64, 80, 128)),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    with_bias=st.booleans(),
    stride=st.sampled_from((1, 2)),
)
def test_values_and_gradients_are_pytorchs(
    images: int, inner: int, out: int, height: int, width: int, with_bias: bool, stride: int
) -> None:
    compare(drawn(images, inner, out, height, width, stride), with_bias, stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(9, 64, 80, 32, 30), (8, 16, 16, 64, 64), (16, 256, 96, 8, 8)])
def test_many_tiles_go_block_by_block(shape: tuple[int, int, int, int, int], stride: int) -> None:
    compare(drawn(*shape, stride), with_bias=True, stride=stride)


@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (256, 8), (256, 4), (64, 14), (64, 6)])
def test_rounding_errors_are_a_few_times_those_of_a_direct_convolution(channels: int, side: int) -> None:
    """Also with tiles of 4x4 outputs (sides of 4, 8, 14, 16, 32), for images that ReLU has passed."""
    x, filters, _, dy = drawn(8, channels, channels, side, side)
    x = x.relu()
    wide = [t.double().requires_grad_() for t in (x, filters)]
    exact = direct(wide)
    exact_gradients = torch.autograd.grad(exact, wide, dy.double())
    errors = []
    for convolve in (winograd_conv, lambda *leaves: direct(list(leaves))):
        leaves = [
            x.clone(memory_format=torch.preserve_format).requires_grad_(),
            filters.clone().requires_grad_(),
        ]
        y = convolve(*leaves)
        found = (y.detach(), *torch.autograd.grad(y, leaves, dy))
        errors.append([error(f, w) for f, w in zip(found, (exact.detach(), *exact_gradients), strict=True)])
    for ours, library, times in zip(*errors, (3, 3, 6), strict=True):
        assert ours < times * library


@pytest.mark.parametrize("side", [7, 8, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_zeros_stay_zeros(stride: int, side: int) -> None:
    """A filter of zeros gives exact zeros, and a channel of zeros has gradient 0; masks need this."""
    x, filters, _, dy = drawn(3, 32, 32, side, 8, stride)
    filters[5] = 0
    filters[:, 11] = 0
    x[:, 9] = 0
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_(), filters.clone().requires_grad_()]
    y = winograd_conv(*leaves, stride=stride)
    assert not y[:, 5].any()
    gradients = torch.autograd.grad(y, leaves, dy)
    assert not gradients[0][:, 11].any()
    assert not gradients[1][:, 9].any()


def test_what_needs_no_gradient_gets_none() -> None:
    x, filters, _, dy = drawn(2, 16, 32, 6, 6)
    wanted = torch.ops.aten.convolution_backward(
        dy, x, filters, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    for which in range(2):
        leaves = [x.clone(), filters.clone()]
        leaves[which].requires_grad_()
        (found,) = torch.autograd.grad(winograd_conv(*leaves), leaves[which], dy)
        assert error(found, wanted[which]) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("least", [0.0, 0.5, 10.0])
def test_the_filters_gradient_can_leave_out_small_entries(least: float, stride: int) -> None:
    """It uses only entries of the images of at least `least`; outputs and images' gradients use all entries."""
    x, filters, bias, dy = drawn(3, 32, 48, 7, 8, stride)
    x[0, 0, 0, 0] = least  # an entry equal to `least` is used
    leaves = [t.clone().requires_grad_() for t in (x, filters, bias)]
    y = winograd_conv(*leaves, stride=stride, least=least)
    found = torch.autograd.grad(y, leaves, dy)
    wide = [t.double() for t in (dy, x, filters)]
    rest = ([48], [stride, stride], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
    whole = torch.ops.aten.convolution_backward(*wide, *rest)
    kept = x.double() * (x.abs() >= least)
    pruned = torch.ops.aten.convolution_backward(wide[0], kept, wide[2], *rest)
    assert error(y.detach(), direct([wide[1], wide[2], bias.double()], stride)) < 1e-6
    for mine, wanted in zip(found, (whole[0], pruned[1], whole[2]), strict=True):
        assert error(mine, wanted) < 1e-5


def test_a_gradient_of_a_gradient_that_leaves_out_small_entries() -> None:
    x, filters, _, _ = drawn(2, 16, 16, 5, 5)
    leaf = filters.clone().requires_grad_()
    y = winograd_conv(x, leaf, least=0.5)
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(gradient.square().sum(), leaf)

    kept, wide = (x * (x.abs() >= 0.5)).double(), filters.double().requires_grad_()
    unseen = conv2d(x.double() - kept, wide.detach(), padding=1)  # changes the value, has no gradient
    y = unseen + conv2d(kept, wide, padding=1)
    (own,) = torch.autograd.grad(y.pow(3).sum(), wide, create_graph=True)
    (wanted,) = torch.autograd.grad(own.square().sum(), wide)
    assert error(found, wanted) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_of_a_gradient_is_pytorchs(stride: int) -> None:
    x, filters, bias, _ = drawn(2, 16, 16, 5, 5)
    found = []
    for native in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, filters, bias)]
        y = winograd_conv(*leaves, stride=stride) if native else direct(leaves, stride)
        gradients = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in gradients]).sum()
        found.append(torch.autograd.grad(penalty, leaves))
    for mine, theirs in zip(*found, strict=True):
        assert error(mine, theirs) < 1e-5


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, padding=1, stride=3),
        nn.Conv2d(16, 16, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 10, 3, padding=1),
        nn.ConvTranspose2d(16, 16, 3, padding=1),
    ],
)
def test_layers_that_are_left_to_pytorch(conv: nn.Module) -> None:
    assert serves(nn.Conv2d(16, 32, 3, padding=1))
    assert serves(nn.Conv2d(16, 32, 3, padding=1, stride=2))
    assert serves(nn.Conv2d(16, 32, 3, padding="same"))
    assert not serves(conv)


def test_images_that_are_left_to_pytorch() -> None:
    x, filters, _, _ = drawn(2, 16, 16, 4, 4)
    assert fits(x, filters)
    assert not fits(x.contiguous(), filters)
    assert not fits(x.double(), filters.double())
    assert not fits(x[:0], filters)
    assert not fits(x, filters.contiguous(memory_format=LAST))
    assert not fits(x[0], filters)


def test_what_does_not_fit_is_refused() -> None:
    x, filters, bias, _ = drawn(2, 16, 16, 4, 4)
    with pytest.raises(ValueError, match=r"filters are \[16, 8, 3, 3\]"):
        winograd_conv(x, filters[:, :8])
    with pytest.raises(ValueError, match="channels last"):
        winograd_conv(x.contiguous(), filters)
    with pytest.raises(ValueError, match=r"bias is torch.float32 \[3\]"):
        winograd_conv(x, filters, bias[:3])
    with pytest.raises(ValueError, match="stride is 3; 1 or 2 is needed"):
        winograd_conv(x, filters, stride=3)
