"""Kernels on several threads: the bits do not depend on their number, with PyTorch's threads or without."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.native import available
from ssfl.native.group_norm import After, norm_act
from ssfl.native.library import MAX_ISA, kernels
from ssfl.native.memory_bound.vectors import expand, multiply_by_mask_, weighted_sum
from ssfl.native.winograd import winograd_conv

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
SEVERAL = (2, 3, 5)
FORMATS = (torch.contiguous_format, torch.channels_last)
Shape = tuple[int, int, int, int, int]


@contextlib.contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Set PyTorch's number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Equal bits, including the sign of zeros."""
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.contiguous().view(torch.int32).equal(theirs.contiguous().view(torch.int32))


def assert_independent_of_threads(call: Callable[[], Sequence[Tensor]]) -> None:
    with intra_op(1):
        wanted = call()
    for threads in SEVERAL:
        with intra_op(threads):
            assert_same(call(), wanted)


def convolution(shape: Shape, stride: int = 1) -> list[Tensor]:
    """Outputs and all gradients; shape: images, channels in and out, height, width."""
    images, inner, out, height, width = shape
    generator = torch.Generator().manual_seed(0)
    shapes = ((images, inner, height, width), (out, inner, 3, 3), (out,))
    x, filters, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    leaves = [x.contiguous(memory_format=torch.channels_last), filters, bias]
    y = winograd_conv(*(t.requires_grad_() for t in leaves), stride=stride)
    dy = torch.randn(y.shape, generator=generator)
    # PyTorch sums the bias's gradient; its bits depend on the number of threads.
    return [y.detach(), *torch.autograd.grad(y, leaves[:2], dy)]


def norm(shape: Shape, form: torch.memory_format, after: After, extras: bool) -> list[Tensor]:
    """Outputs and all gradients; shape: images, groups, channels of a group, height, width."""
    images, groups, size, height, width = shape
    generator = torch.Generator().manual_seed(0)
    channels, maps = groups * size, (images, groups * size, height, width)
    shapes = [maps, (channels,), (channels,), maps, (channels,)]
    x, weight, bias, residual, shift = (torch.randn(shape, generator=generator) for shape in shapes)
    leaves = [x.contiguous(memory_format=form), weight, bias]
    leaves += [residual] if extras and not after.pool else []
    leaves += [shift] if extras else []
    rest = [t.requires_grad_() for t in leaves][3:]
    added = rest.pop(0) if extras and not after.pool else None
    y = norm_act(*(leaves[0], groups, weight, bias, 1e-5, after), added, rest[0] if rest else None)
    dy = torch.randn(y.shape, generator=generator)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 512, 512, 4, 4),  # few tiles: threads divide the panels
        (2, 512, 64, 5, 5),  # few tiles, one panel
        (16, 16, 64, 16, 16),  # one slice of input channels
        (1, 32, 16, 33, 31),  # one image with odd sides
        (3, 48, 80, 33, 31),  # no power of two
        (9, 64, 64, 32, 32),  # many blocks
        (5, 256, 320, 3, 1),  # fewer rows of tiles than threads
    ],
)
def test_convolutions_of_every_kind(shape: Shape, stride: int) -> None:
    assert_independent_of_threads(lambda: convolution(shape, stride))


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 5),
    inner=st.integers(1, 8),
    out=st.integers(1, 8),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.sampled_from((1, 2)),
)
def test_convolutions(images: int, inner: int, out: int, height: int, width: int, stride: int) -> None:
    shape = (images, 16 * inner, 16 * out, height, width)
    assert_independent_of_threads(lambda: convolution(shape, stride))


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 9),
    groups=st.integers(1, 4),
    size=st.sampled_from((1, 3, 8, 16, 32)),
    height=st.integers(1, 16),
    width=st.integers(1, 16),
    form=st.sampled_from(FORMATS),
    after=st.sampled_from((After(relu=False), After(), After(pool=True))),
    extras=st.booleans(),
)
def test_norms(
    images: int,
    groups: int,
    size: int,
    height: int,
    width: int,
    form: torch.memory_format,
    after: After,
    extras: bool,
) -> None:
    if groups * size % 16:
        form = torch.contiguous_format
    shape = (images, groups, size, 2 * height, 2 * width)
    assert_independent_of_threads(lambda: norm(shape, form, after, extras))


@pytest.mark.parametrize("size", [0, 1, 63, 262144, 262145, 400001])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_vectors(size: int, density: float) -> None:
    generator = torch.Generator().manual_seed(size)
    mask = torch.rand(size, generator=generator) < density
    vectors = [torch.randn(size, generator=generator) for _ in range(3)]
    values = vectors[0][mask]

    def call() -> list[Tensor]:
        total = weighted_sum(vectors, [0.1, 0.2, 0.7], torch.empty(size))
        return [expand(mask, values), multiply_by_mask_(vectors[1].clone(), mask), total]

    assert_independent_of_threads(call)
    with intra_op(3):
        for given_ in (
            values[:-1] if len(values) else torch.ones(1),
            torch.cat([values, values, vectors[2]]),
        ):
            if len(given_) != len(values):
                with pytest.raises(ValueError, match=f"a mask that keeps {len(values)}"):
                    expand(mask, given_)


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_several_threads_at_once(threads: int) -> None:
    shapes: list[Shape] = [(3, 48, 80, 33, 31), (1, 256, 256, 4, 4)]
    norms: list[Shape] = [(9, 2, 32, 16, 16), (16, 1, 64, 16, 16)]
    last = torch.channels_last

    def both(which: int) -> list[Tensor]:
        return convolution(shapes[which]) + norm(norms[which], last, After(), True)

    with intra_op(1):
        wanted = [both(which) for which in range(2)]
    same = []

    def work(which: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(10):
            assert_same(both(which), wanted[which])
        same.append(which)

    started = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert sorted(same) == [0, 1]


def run(program: str, *words: str, **environment: str) -> str:
    """The output of a program in a new process."""
    command = [sys.executable, "-c", program, *words]
    environment = {**os.environ, MAX_ISA: kernels.used(), **environment}
    return subprocess.run(command, env=environment, check=True, capture_output=True).stdout.decode().strip()


def test_without_pytorch_they_compute_alone() -> None:
    """OpenMP is not loaded there, so there are no other threads."""
    program = """
import array, importlib.util, sys
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
size = 600_001
mask, values = array.array("B", [k % 3 == 0 for k in range(size)]), array.array("f", range(size))
kernels.multiply_by_mask(mask.buffer_info()[0], size, values.buffer_info()[0], 4)
print(values == array.array("f", [k * (k % 3 == 0) for k in range(size)]), "torch" in sys.modules)
"""
    assert run(program, str(kernels.__file__)) == "True False"


FEWER = """
import torch
from tests.native.test_parallel import assert_same, convolution, intra_op
with intra_op(1):
    wanted = convolution((3, 48, 80, 33, 31))
with intra_op(5):
    assert_same(convolution((3, 48, 80, 33, 31)), wanted)
print("same")
"""


def test_fewer_threads_than_were_asked_for() -> None:
    assert run(FEWER, OMP_THREAD_LIMIT="2") == "same"


COUNT = """
import os, torch
from ssfl.native.memory_bound.vectors import weighted_sum
there = lambda: len(os.listdir("/proc/self/task"))
vectors = [torch.empty(1_000_000) for _ in range(3)]
torch.set_num_threads(3)
before = there()
weighted_sum(vectors[:2], [1.0, 1.0], vectors[2])
ours = there()
torch.exp(vectors[0])
print(ours - before, there() - ours)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.skipif(
    "OpenMP" not in torch.__config__.parallel_info(), reason="this PyTorch computes without OpenMP"
)
def test_the_threads_are_pytorchs() -> None:
    """A kernel starts two threads in addition to the caller, and PyTorch's operations then reuse them."""
    assert run(COUNT) == "2 0"
