"""Stored bytes → network input: crop and flip on uint8, then normalisation; whole batches, no loop over images."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional

from ssfl.data.arrays import Arrays

NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tinyimagenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}
"""Mean and deviation per channel of pixels in 0..1. CIFAR: the authors' constants; Tiny-ImageNet: those of
the earlier code (SalientGrads); the two 28x28 sets: the usual published ones."""


def own_name(name: str) -> str:
    """The name of a user's data set: a file or folder "mnist" is not MNIST, whose constants must not be used."""
    return f"own_{name}" if name in NORMALISATION else name


CROP_PADDING = 4
_CROPPED_AND_FLIPPED = frozenset({"cifar10", "cifar100", "tinyimagenet"})


class Augmentation(NamedTuple):
    """The draws for `count` examples. offsets: int64 [count, 2], row and column where the crop starts in the
    padded image, each in 0..2*crop_padding; flips: bool [count], mirrored left to right after the crop."""

    offsets: Tensor
    flips: Tensor


@final
@dataclass(frozen=True)
class Preprocess:
    """How a data set's examples become network input.

    mean, std: one entry for all, or one per channel (images [B, C, H, W]) or per feature ([B, F]); for uint8
    in units of 0..1. crop_padding: zero pixels added on each side before a random crop back to size,
    0 for no crop. flip: mirror half of the images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False
    _mean: Tensor = field(init=False, repr=False, compare=False)
    _std: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Make the tensors once: for a wide table this takes longer than normalising a batch.
        object.__setattr__(self, "_mean", torch.tensor(self.mean, dtype=torch.float32))
        object.__setattr__(self, "_std", torch.tensor(self.std, dtype=torch.float32))

    @property
    def augments(self) -> bool:
        """Whether `augment` changes anything."""
        return self.crop_padding > 0 or self.flip

    def to(self, device: torch.device) -> Preprocess:
        """The same with its constants on the device, so that they are not copied for every batch."""
        moved = copy.copy(self)
        object.__setattr__(moved, "_mean", self._mean.to(device))
        object.__setattr__(moved, "_std", self._std.to(device))
        return moved

    def normalise(self, x: Tensor) -> Tensor:
        """(x / 255 - mean) / std for uint8 x, (x - mean) / std for floats; float32, a new tensor of x's shape.

        Token numbers (int64) are returned unchanged.
        """
        if x.dtype == torch.int64:
            return x
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, std = (value.to(x.device).view(shape) for value in (self._mean, self._std))
        if x.dtype == torch.uint8:
            return x.to(torch.float32).div_(255).sub_(mean).div_(std)
        return (x - mean).div_(std)

    def table(self, channels: int) -> Tensor:
        """float32 [channels, 256]: the result of `normalise` for every byte value, per channel."""
        bytes_ = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, channels, 1, 1)
        return self.normalise(bytes_).view(256, channels).t().contiguous()

    def constants(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation, float32 [channels] each."""
        return tuple(value.expand(channels).contiguous() for value in (self._mean, self._std))  # type: ignore[return-value]

    def draw(self, count: int, generator: torch.Generator) -> Augmentation:
        """One draw for `count` examples: offsets first, then flips; disabled crops and flips draw nothing."""
        offsets = torch.zeros(count, 2, dtype=torch.int64)
        flips = torch.zeros(count, dtype=torch.bool)
        if self.crop_padding:
            offsets = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        if self.flip:
            flips = torch.rand(count, generator=generator) < 0.5
        return Augmentation(offsets, flips)

    def augment(self, x: Tensor, augmentation: Augmentation) -> Tensor:
        """Pad, crop, flip: uint8 x [B, C, H, W] → uint8 [B, C, H, W], image i by draw i; x does not change.

        One gather with an index [B, H * W] that all channels share: on a CPU several times faster than
        indexing rows and columns, and possible on any device.
        """
        if not self.augments:
            return x
        batch, channels, height, width = x.shape
        pad = self.crop_padding
        padded = functional.pad(x, (pad, pad, pad, pad))
        index = self._source_pixels(augmentation, height, width).to(x.device)
        flat = padded.flatten(2)
        shared = index.unsqueeze(1).expand(batch, channels, height * width)
        return flat.gather(2, shared).view(batch, channels, height, width)

    def _source_pixels(self, augmentation: Augmentation, height: int, width: int) -> Tensor:
        """int64 [B, H * W]: index of the pixel in the padded image (row-major) for each output pixel."""
        offsets, flips = augmentation
        rows = offsets[:, :1] + torch.arange(height, device=offsets.device)
        columns = offsets[:, 1:] + torch.arange(width, device=offsets.device)
        columns = torch.where(flips[:, None], columns.flip(1), columns)
        padded_width = width + 2 * self.crop_padding
        return (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1)


UNCHANGED = Preprocess((0.0,), (1.0,))
"""For tables that the network receives unchanged."""


def default_preprocess(arrays: Arrays, augment: bool = True) -> Preprocess:
    """The data set's published constants, else mean and deviation of its training examples.

    Computed ones are per channel for images and per feature for tables; a constant feature gets deviation 1.
    Crop (4 pixels) and flip are for CIFAR and Tiny-ImageNet only: a mirrored digit is not a digit.
    """
    mean, std = NORMALISATION.get(arrays.name) or _measured(arrays.train_x)
    crop_and_flip = augment and arrays.name in _CROPPED_AND_FLIPPED
    return Preprocess(mean, std, CROP_PADDING if crop_and_flip else 0, crop_and_flip)


def _measured(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if x.dtype == torch.uint8:
        moments = [_histogram_moments(x[:, channel]) for channel in range(x.shape[1])]
        means, deviations = (list(values) for values in zip(*moments))
    else:
        over = [dim for dim in range(x.dim()) if dim != 1]
        # float64: in float32 the deviation of a feature far from 0 would be lost
        wide = x.to(torch.float64)
        means = wide.mean(over).tolist()
        deviations = wide.std(over, correction=0).tolist()
    return tuple(means), tuple(value if value > 0 else 1.0 for value in deviations)


def _histogram_moments(channel: Tensor) -> tuple[float, float]:
    """Mean and deviation of uint8 pixels / 255, exact, without a float copy of the images."""
    # In pieces, because bincount widens its input to int64.
    counts = sum(
        (torch.bincount(piece.flatten(), minlength=256) for piece in torch.split(channel, 4096)),
        start=torch.zeros(256, dtype=torch.int64),
    ).to(torch.float64)
    values = torch.arange(256, dtype=torch.float64) / 255
    if counts.count_nonzero() == 1:  # rounding would give a deviation of about 1e-17 instead of 0
        return float(values[counts.argmax()]), 0.0
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    return float(mean), float(variance.sqrt())
