"""Whole-batch augmentation compared with a loop over images; normalisation compared with its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.data.arrays import Arrays
from ssfl.data.preprocess import Augmentation, Preprocess, default_preprocess


def _augment_by_loop(x: Tensor, padding: int, draws: Augmentation) -> Tensor:
    """One image after the other, with slices: pad with zeros, crop, mirror."""
    results = []
    for image, (row, column), flip in zip(x.numpy(), draws.offsets.tolist(), draws.flips.tolist()):
        channels, height, width = image.shape
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), dtype=np.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        window = padded[:, row : row + height, column : column + width]
        results.append(window[:, :, ::-1] if flip else window)
    return torch.from_numpy(np.stack(results).copy())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7), st.integers(0, 4),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_augment_is_the_loop_over_images(
    batch: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)
    before = x.clone()
    preprocess = Preprocess((0.5,), (0.5,), padding, flip)
    draws = preprocess.draw(batch, generator)
    assert torch.equal(preprocess.augment(x, draws), _augment_by_loop(x, padding, draws))
    assert torch.equal(x, before)


def test_draws_cover_every_offset_evenly_and_flip_half() -> None:
    draws = Preprocess((0.0,), (1.0,), 4, True).draw(90_000, torch.Generator().manual_seed(1))
    for axis in (0, 1):
        counts = torch.bincount(draws.offsets[:, axis])
        assert len(counts) == 9
        assert (counts - 10_000).abs().max() < 500  # five deviations of a binomial
    assert abs(draws.flips.float().mean() - 0.5) < 0.01
    again = Preprocess((0.0,), (1.0,), 4, True).draw(90_000, torch.Generator().manual_seed(1))
    assert torch.equal(draws.offsets, again.offsets)
    assert torch.equal(draws.flips, again.flips)


def test_normalise_bytes_by_channel() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    y = Preprocess((0.5, 0.2, 0.0), (0.25, 1.0, 2.0)).normalise(x)
    assert y.dtype == torch.float32
    assert y.flatten().tolist() == pytest.approx([-2.0, 0.0, 0.5], abs=1e-7)


def test_normalise_floats_by_feature_and_by_one_entry() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert Preprocess((1.0, 20.0), (2.0, 10.0)).normalise(x).tolist() == [[0.0, -1.0], [1.0, 1.0]]
    assert Preprocess((1.0,), (2.0,)).normalise(x).tolist() == [[0.0, 4.5], [1.0, 14.5]]
    assert x.tolist() == [[1.0, 10.0], [3.0, 30.0]]


def _arrays(name: str, x: Tensor) -> Arrays:
    y = torch.arange(len(x)) % 2
    return Arrays(name, 2, ("a", "b"), x, y, x[:2].clone(), y[:2].clone())


@pytest.mark.parametrize(("name", "channels"), [("cifar10", 3), ("cifar100", 3), ("tinyimagenet", 3)])
def test_natural_images_are_cropped_and_flipped(name: str, channels: int) -> None:
    arrays = _arrays(name, torch.zeros(4, channels, 8, 8, dtype=torch.uint8))
    on, off = default_preprocess(arrays), default_preprocess(arrays, augment=False)
    assert (on.crop_padding, on.flip, on.augments) == (4, True, True)
    assert (off.crop_padding, off.flip, off.augments) == (0, False, False)
    assert on.mean == off.mean


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "own"])
def test_digits_are_neither_mirrored_nor_moved(name: str) -> None:
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    preprocess = default_preprocess(_arrays(name, x))
    assert not preprocess.augments
    assert preprocess.augment(x, preprocess.draw(4, torch.Generator())) is x


def test_published_constants() -> None:
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert default_preprocess(_arrays("cifar10", x)).std == (0.24703233, 0.24348505, 0.26158768)
    assert default_preprocess(_arrays("cifar100", x)).mean == (0.5071, 0.4867, 0.4408)
    assert default_preprocess(_arrays("tinyimagenet", x)).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("images", [3, 11, 100])
def test_a_channel_with_one_value_has_deviation_1_for_every_value(images: int) -> None:
    for value in range(256):
        x = torch.full((images, 1, 5, 7), value, dtype=torch.uint8)
        measured = default_preprocess(_arrays("own", x))
        assert measured.mean == (value / 255,)
        assert measured.std == (1.0,)


def test_measured_constants_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5000, 3, 2, 2), dtype=np.uint8)
    measured = default_preprocess(_arrays("own", torch.from_numpy(images)))
    assert measured.mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)))
    assert measured.std == pytest.approx((images / 255).std(axis=(0, 2, 3)))
    table = rng.normal(1000, 0.5, (200, 4)).astype(np.float32)
    table[:, 2] = 7  # a constant feature must not divide by 0
    measured = default_preprocess(_arrays("own", torch.from_numpy(table)))
    assert measured.mean == pytest.approx(table.astype(np.float64).mean(axis=0))
    assert measured.std == pytest.approx(
        [*table[:, :2].astype(np.float64).std(axis=0), 1.0, table[:, 3].astype(np.float64).std()]
    )
    assert torch.isfinite(measured.normalise(torch.from_numpy(table))).all()
