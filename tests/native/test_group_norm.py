"""GroupNorm with the operations after it, compared with PyTorch's layers in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, max_pool2d, relu

from ssfl.native import available
from ssfl.native.group_norm import MOST_CHANNELS, After, fits, layer_by_layer, norm_act

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
FORMATS = (torch.contiguous_format, torch.channels_last)
AFTERS = (After(relu=False), After(), After(pool=True))


def drawn(*shape: int, seed: int, form: torch.memory_format = torch.contiguous_format) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(shape, generator=generator)
    return out.contiguous(memory_format=form) if out.dim() == 4 else out


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    after: After,
    residual: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """The same with PyTorch's layers."""
    x = x if shift is None else x + shift[:, None, None]
    y = group_norm(x, groups, weight, bias, 1e-5)
    y = max_pool2d(y, 2) if after.pool else y
    y = y if residual is None else y + residual
    return relu(y) if after.relu else y


def both(
    x: Tensor, groups: int, after: After, residual: Tensor | None = None, shift: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """(output, gradients) by the kernels in float32 and by PyTorch in float64, for the same inputs."""
    channels = x.shape[1]
    weight, bias = drawn(channels, seed=1), drawn(channels, seed=2)
    given_ = [t for t in (x, weight, bias, residual, shift) if t is not None]
    answers = []
    for kind in (torch.float32, torch.float64):
        leaves = [t.detach().to(kind).requires_grad_() for t in given_]
        own, w, b, *rest = leaves
        r = rest.pop(0) if residual is not None else None
        s = rest.pop(0) if shift is not None else None
        if kind == torch.float32:
            y = norm_act(own, groups, w, b, 1e-5, after, r, s)
        else:
            y = reference(own, groups, w, b, after, r, s)
        direction = drawn(*y.shape, seed=3).to(kind)
        answers.append([y.detach(), *torch.autograd.grad(y, leaves, direction)])
    return answers[0], answers[1]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float = 2e-5) -> None:
    """Equal within a share of the largest value, because sums over a map round relative to their terms."""
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("form", FORMATS, ids=["first", "last"])
@pytest.mark.parametrize("after", AFTERS, ids=str)
@pytest.mark.parametrize(
    ("channels", "side", "groups"), [(32, 32, 4), (64, 8, 1), (48, 6, 3), (16, 2, 16), (32, 1, 2), (16, 5, 4)]
)
def test_values_and_gradients_are_pytorchs(
    form: torch.memory_format, after: After, channels: int, side: int, groups: int
) -> None:
    x = drawn(3, channels, side, side, seed=0, form=form)
    if side % 2 and after.pool:
        assert not fits(x, after)
        return
    assert fits(x, after)
    shift = drawn(channels, seed=4)
    for s in (None, shift):
        if side * side * channels // groups < 2:
            continue  # a group of one value has no deviation: its gradient is noise
        assert_near(*both(x, groups, after, shift=s))


@pytest.mark.parametrize("form", FORMATS, ids=["first", "last"])
def test_a_residual_is_added_before_relu_and_gets_its_gradient(form: torch.memory_format) -> None:
    x, residual = (drawn(2, 32, 6, 6, seed=k, form=form) for k in (0, 5))
    assert_near(*both(x, 8, After(), residual, drawn(32, seed=4)))
    other = residual.contiguous(
        memory_format=FORMATS[form is torch.contiguous_format]
    )  # in the other memory format
    assert_near(*both(x, 8, After(), other))
    with pytest.raises(ValueError, match="whole map"):
        norm_act(x, 8, torch.ones(32), torch.zeros(32), 1e-5, After(pool=True), residual)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 3),
    groups=st.integers(1, 4),
    size=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    mean=st.sampled_from([0.0, 3.0, -40.0]),
    pool=st.booleans(),
)
def test_any_shape_and_any_mean(
    images: int, groups: int, size: int, height: int, width: int, mean: float, pool: bool
) -> None:
    height, width = (2 * height, 2 * width) if pool else (height, width)
    if size * height * width < 2:
        return
    x = drawn(images, groups * size, height, width, seed=0) + mean
    # With a mean of 40 deviations, float32 loses digits of every x, in PyTorch too.
    assert_near(*both(x, groups, After(pool=pool)), 2e-5 * (1 + abs(mean)))


def test_ties_go_to_the_first_of_a_window_as_in_pytorch() -> None:
    x = torch.zeros(1, 16, 4, 4)
    x[:, :, ::2] = torch.arange(2.0).repeat(2)  # equal pairs within windows
    x[:, 8:] += drawn(1, 8, 4, 4, seed=0)
    for form in FORMATS:
        assert_near(*both(x.contiguous(memory_format=form), 2, After(pool=True)))


def test_pooling_without_relu_is_left_to_pytorch() -> None:
    x, after = -drawn(2, 4, 6, 6, seed=0).abs(), After(pool=True, relu=False)
    assert not fits(x, after)
    assert bool((layer_by_layer(x, 2, torch.ones(4), torch.zeros(4), 1e-5, after) < 0).any())


def test_what_is_not_finite_stays_so() -> None:
    for form, after in itertools.product(FORMATS, AFTERS):
        x = drawn(2, 32, 4, 4, seed=0, form=form)
        x[1, 3, 2, 2] = float("nan")
        y = norm_act(x, 4, torch.ones(32), torch.zeros(32), 1e-5, after)
        assert bool(y[1, :8].isnan().all())
        assert bool(y[0].isfinite().all())
        assert bool(y[1, 8:].isfinite().all())


def test_the_bias_of_a_convolution_may_be_the_norms() -> None:
    x, filters, bias = drawn(2, 3, 8, 8, seed=0), drawn(32, 3, 3, 3, seed=1), drawn(32, seed=2)
    weight, offset = drawn(32, seed=3), drawn(32, seed=4)
    fused = norm_act(conv2d(x, filters, None), 4, weight, offset, 1e-5, After(), None, bias)
    assert_near([fused], [relu(group_norm(conv2d(x, filters, bias), 4, weight, offset))])


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 8, 4, 4, dtype=torch.float64),
        torch.zeros(2, 8, 4, 4, dtype=torch.bfloat16),
        torch.zeros(8, 4, 4),
        torch.zeros(0, 8, 4, 4),
        torch.zeros(1, MOST_CHANNELS + 1, 1, 1),
        torch.zeros(2, 8, 4, 8)[..., ::2],
        torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 8, 4, 4, device="meta"),
    ],
    ids=[
        "float64",
        "bfloat16",
        "no batch",
        "empty",
        "too many",
        "strided",
        "eight channels last",
        "elsewhere",
    ],
)
def test_what_the_kernels_leave_to_pytorch(x: Tensor) -> None:
    assert not fits(x, After(relu=False))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("weight", torch.ones(31)), ("bias", torch.ones(32).double()), ("shift", torch.ones(64)[::2])],
)
def test_a_wrong_parameter_is_named_before_memory_is_read(name: str, wrong: Tensor) -> None:
    tensors = {"weight": torch.ones(32), "bias": torch.ones(32), "shift": torch.ones(32), name: wrong}
    x, (weight, bias, shift) = torch.zeros(1, 32, 4, 4), tensors.values()
    with pytest.raises(ValueError, match=name):
        norm_act(x, 4, weight, bias, 1e-5, After(), None, shift)


def test_a_gradient_of_a_gradient_is_pytorchs() -> None:
    shapes = [(2, 16, 4, 4), (16,), (16,), (2, 16, 4, 4)]
    given_ = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]
    found = []
    for compute in (norm_act, layer_by_layer):
        leaves = [t.clone().requires_grad_() for t in given_]
        x, weight, bias, residual = leaves
        y = compute(x, 4, weight, bias, 1e-5, After(), residual)
        gradients = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        penalty = sum((g.square().sum() for g in gradients), torch.zeros(()))
        found.append([*(g.detach() for g in gradients), *torch.autograd.grad(penalty, leaves)])
    assert_near(found[0], found[1], 1e-4)


def test_a_network_without_gradients_computes_too() -> None:
    norm = nn.GroupNorm(4, 32)
    x = drawn(2, 32, 4, 4, seed=0)
    with torch.inference_mode():
        y = norm_act(x, 4, norm.weight, norm.bias, norm.eps, After(relu=False))
    torch.testing.assert_close(y, norm(x).detach())
