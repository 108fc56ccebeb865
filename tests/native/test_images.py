"""Minibatches by the kernels: the bits of `ssfl.data.preprocess`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.data.pixels import Pixels
from ssfl.data.preprocess import Preprocess
from ssfl.native import available
from ssfl.native.memory_bound.images import from_bytes, serves

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.integers(0, 6),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    last=st.booleans(),
    floats=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pixels_are_those_of_the_plain_way(
    channels: int,
    height: int,
    width: int,
    count: int,
    padding: int,
    flip: bool,
    last: bool,
    floats: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, 256, (7, channels, height, width), dtype=torch.uint8, generator=generator)
    source = source.float() if floats else source
    mean = tuple(0.1 * (c + 1) for c in range(channels if seed % 2 else 1))
    preprocess = Preprocess(mean, tuple(1.0 + m for m in mean), padding, flip)
    rows = torch.randint(0, 7, (count,), generator=generator)
    draws = None if floats else preprocess.draw(count, generator)
    quick, plain = (Pixels(source, preprocess, last, native) for native in (True, False))
    assert quick.quick
    assert not plain.quick
    found = quick.of(rows, draws)
    assert found.equal(plain.of(rows, draws))
    form = torch.channels_last if last else torch.contiguous_format
    assert found.is_contiguous(memory_format=form)


def test_a_row_or_crop_that_is_not_there_is_refused() -> None:
    source, table = torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.zeros(1, 256)
    for rows in ([4], [-1], [0, 9]):
        with pytest.raises(IndexError, match="not there"):
            from_bytes(source, torch.tensor(rows), table, False)
    with pytest.raises(IndexError, match="crop"):
        from_bytes(source, torch.tensor([0]), table, False, torch.tensor([[0, 3]]), None, padding=1)
    for wrong in (torch.zeros(2, 256), torch.zeros(1, 256).double()):
        with pytest.raises(ValueError, match="table"):
            from_bytes(source, torch.tensor([0]), wrong, False)
    with pytest.raises(ValueError, match="offsets"):
        from_bytes(source, torch.tensor([0, 1]), table, False, torch.zeros(1, 2, dtype=torch.int64))


def test_tables_and_other_kinds_go_the_plain_way() -> None:
    assert not serves(torch.zeros(4, 3))
    assert not serves(torch.zeros(4, 3, 2, 2).double())
    assert not serves(torch.zeros(0, 3, 2, 2))
    assert not serves(torch.zeros(4, 3, 2, 2, device="meta"))
    features = Pixels(torch.arange(6.0).view(3, 2), Preprocess((1.0,), (2.0,)))
    assert features.of(torch.tensor([2])).tolist() == [[1.5, 2.0]]
