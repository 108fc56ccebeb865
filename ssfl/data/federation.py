"""What the engine reads: who owns which row, in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from ssfl.data.arrays import Arrays
from ssfl.data.partition import PartitionSpec, partition
from ssfl.data.parts import Parts
from ssfl.data.pixels import Pixels
from ssfl.data.preprocess import Augmentation, Preprocess
from ssfl.data.side_by_side import Step, steps_side_by_side
from ssfl.data.split import Rows, split_by_site, split_test

_AUGMENTED_AT_ONCE_ON_DEVICE = 1 << 14
"""On a device few large operations: an epoch of the paper's client at once; 16 KB of index an image of 32x32."""
_AUGMENTED_AT_ONCE = 128
"""Images per gather: enough to spread its cost over small batches, few enough to stay in the processor's cache."""


@final
@dataclass(frozen=True, eq=False)
class Federation:
    """All clients' data of one simulation.

    train_parts, test_parts: int64 row numbers per client; test_parts together hold every test row once.
    """

    arrays: Arrays
    preprocess: Preprocess
    train_parts: Sequence[Tensor]
    test_parts: Sequence[Tensor]
    channels_last: bool = False
    """The memory format of the images that batches hold, where the kernels make them."""
    native: bool = True
    """Whether the kernels may (`ssfl.native.images`); the pixels are the same."""

    def __post_init__(self) -> None:
        for name in ("train_parts", "test_parts"):
            if not isinstance(getattr(self, name), Parts):
                object.__setattr__(self, name, Parts(getattr(self, name)))

    def to(self, device: torch.device) -> Federation:
        """The same federation with its examples on the device; who owns which row stays the host's."""
        if self.arrays.train_x.device == device:
            return self
        names = ("train_x", "train_y", "test_x", "test_y")
        arrays = replace(self.arrays, **{name: getattr(self.arrays, name).to(device) for name in names})
        return replace(self, arrays=arrays, preprocess=self.preprocess.to(device))

    def laid_out(self, channels_last: bool) -> Federation:
        """The same federation, whose batches hold their images in that memory format if they can."""
        return self if channels_last == self.channels_last else replace(self, channels_last=channels_last)

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.train_parts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example, without the batch dimension: (C, H, W) or (F,)."""
        return tuple(self.arrays.train_x.shape[1:])

    def examples(self, client: int) -> int:
        """The client's training examples n_k."""
        return len(self.train_parts[client])

    def train_batches(
        self, client: int, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches (x float32 [B, ...], y int64 [B]): pieces of a copy of up to 128 examples.

        order: int64 [n], positions within the client's rows; taken in consecutive blocks of `batch_size`, the
        last partial one kept. generator: draws the augmentation of the whole order at once, so a batch's
        pixels do not depend on the batch size; None for no augmentation.
        """
        rows = self.train_parts[client][order]
        draws = None
        if generator is not None and self.preprocess.augments and self.arrays.train_x.dtype == torch.uint8:
            draws = self.preprocess.draw(len(rows), generator)
        labels = self.arrays.train_y[rows.to(self.arrays.train_y.device)]
        device, at_once = self.arrays.train_x.device, _AUGMENTED_AT_ONCE
        if device.type != "cpu":  # the whole order and its draws cross together, not batch by batch
            rows, at_once = rows.to(device), _AUGMENTED_AT_ONCE_ON_DEVICE
            draws = None if draws is None else Augmentation(*(d.to(device) for d in draws))
        step = batch_size * max(1, at_once // batch_size)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            own = None if draws is None else Augmentation(draws.offsets[part], draws.flips[part])
            x = self._train_pixels.of(rows[part], own)
            yield from zip(torch.split(x, batch_size), torch.split(labels[part], batch_size))

    def train_steps(
        self,
        clients: Sequence[int],
        orders: Sequence[Tensor],
        batch_size: int,
        generator_of: Callable[[int], torch.Generator],
        padding: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`train_batches` of several clients side by side: x [B, k, ...], y [B, k] of the k clients with a batch left.

        orders: each client's, none longer than the one before. A client whose batch is shorter than the first one's
        repeats its last example with the label `padding`. generator_of: what draws a client's augmentation.
        """
        rows = torch.cat([self.train_parts[c][order] for c, order in zip(clients, orders, strict=True)])
        draws = None
        if self.preprocess.augments and self.arrays.train_x.dtype == torch.uint8:
            drawn = [
                self.preprocess.draw(len(o), generator_of(c)) for c, o in zip(clients, orders, strict=True)
            ]
            draws = Augmentation(torch.cat([d.offsets for d in drawn]), torch.cat([d.flips for d in drawn]))
        for step in steps_side_by_side([len(order) for order in orders], batch_size):
            here = step.places.flatten()
            own = None
            if draws is not None:
                device = self.arrays.train_x.device
                own = Augmentation(draws.offsets[here].to(device), draws.flips[here].to(device))
            yield _laid(
                self._train_pixels.of(rows[here], own), self.arrays.train_y, rows[here], step, padding
            )

    def test_steps(
        self, clients: Sequence[int], batch_size: int, padding: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`test_batches` of several clients side by side, as `train_steps`; no split longer than the one before."""
        parts = [self.test_parts[c] for c in clients]
        rows = torch.cat(parts)
        for step in steps_side_by_side([len(part) for part in parts], batch_size):
            here = rows[step.places.flatten()]
            yield _laid(self._test_pixels.of(here), self.arrays.test_y, here, step, padding)

    def test_batches(self, client: int | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The client's test split, or (None) the whole test set, in order of rows, never augmented."""
        if client is None:
            yield from self.test_rows(0, len(self.arrays.test_y), batch_size)
            return
        for rows in torch.split(self.test_parts[client], batch_size):
            if len(rows):  # an empty tensor splits into one empty piece
                yield self._test_pixels.of(rows), self.arrays.test_y[rows.to(self.arrays.test_y.device)]

    def test_rows(self, first: int, last: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows first..last-1 of the test set."""
        for start in range(first, last, batch_size):
            stop = min(start + batch_size, last)
            yield self._test_pixels.of(torch.arange(start, stop)), self.arrays.test_y[start:stop].clone()

    @cached_property
    def _train_pixels(self) -> Pixels:
        return Pixels(self.arrays.train_x, self.preprocess, self.channels_last, self.native)

    @cached_property
    def _test_pixels(self) -> Pixels:
        return Pixels(self.arrays.test_x, self.preprocess, self.channels_last, self.native)


def _laid(x: Tensor, labels: Tensor, rows: Tensor, step: Step, padding: int) -> tuple[Tensor, Tensor]:
    shape = step.places.shape
    y = labels[rows.to(labels.device)].view(shape).masked_fill_(step.missing.to(labels.device), padding)
    return x.contiguous().view(*shape, *x.shape[1:]), y


def build_federation(arrays: Arrays, spec: PartitionSpec, preprocess: Preprocess) -> Federation:
    """Divide training rows by `spec`, and test rows after them.

    Test rows follow their sites in a natural partition whose test sites are known, else `split_test`. Raises
    PartitionError when the settings cannot be met.
    """
    train_y = arrays.train_y.numpy()
    site = None if arrays.train_site is None else arrays.train_site.numpy()
    parts = partition(train_y, spec, site)
    if spec.method == "natural" and site is not None and arrays.test_site is not None:
        tests = split_by_site(arrays.test_site.numpy(), site)
    else:
        tests = split_test(arrays.test_y.numpy(), train_y, parts, spec.seed)
    return Federation(arrays, preprocess, _tensors(parts), _tensors(tests))


def _tensors(parts: Sequence[Rows]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(part) for part in parts)
