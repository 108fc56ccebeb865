"""The data that the engine reads: each client's rows, in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from ssfl.data.arrays import Arrays
from ssfl.data.client_rows import ClientRows
from ssfl.data.partition import PartitionSpec, partition
from ssfl.data.pixels import Pixels
from ssfl.data.preprocess import Augmentation, Preprocess
from ssfl.data.side_by_side import Step, steps_side_by_side
from ssfl.data.split import Rows, hold_out, split_by_site, split_test

_AUGMENTED_AT_ONCE_ON_DEVICE = 1 << 14
"""Images per gather on a device: an epoch of the paper's client at once; the index of a 32x32 image takes 16 KB."""
_AUGMENTED_AT_ONCE = 128
"""Images per gather on a CPU: several small batches at once, but few enough for the processor's cache."""


@final
@dataclass(frozen=True, eq=False)
class Federation:
    """All clients' data of one simulation.

    train_parts, test_parts: int64 row numbers per client; test_parts together hold every test row once.
    held_out: int64 numbers of the training rows per client that no client trains on (validation); (): none.
    Evaluation rows are one sequence: the test set, then the held-out rows of each client.
    """

    arrays: Arrays
    preprocess: Preprocess
    train_parts: Sequence[Tensor]
    test_parts: Sequence[Tensor]
    held_out: Sequence[Tensor] = ()
    channels_last: bool = False
    """The memory format of images in batches that the kernels make."""
    native: bool = True
    """Whether the kernels may be used (`ssfl.native.memory_bound.images`); the pixels are the same."""
    client_names: tuple[str, ...] = ()
    """Names of the clients, if they are sites with names; (): none."""

    def __post_init__(self) -> None:
        for name in ("train_parts", "test_parts", "held_out"):
            if not isinstance(getattr(self, name), ClientRows):
                object.__setattr__(self, name, ClientRows(getattr(self, name)))

    @cached_property
    def validation_parts(self) -> Sequence[Tensor]:
        """Each client's held-out rows as numbers of evaluation rows, from len(test_y); (): no client has any."""
        if not len(self.held_out):
            return ()
        sizes = [len(part) for part in self.held_out]
        first = len(self.arrays.test_y)
        return ClientRows(torch.split(torch.arange(first, first + sum(sizes)), sizes))

    def to(self, device: torch.device) -> Federation:
        """The same federation with its examples on the device; row numbers stay in host memory."""
        if self.arrays.train_x.device == device:
            return self
        names = ("train_x", "train_y", "test_x", "test_y")
        arrays = replace(self.arrays, **{name: getattr(self.arrays, name).to(device) for name in names})
        return replace(self, arrays=arrays, preprocess=self.preprocess.to(device))

    def laid_out(self, channels_last: bool) -> Federation:
        """The same federation, with the images of batches in that memory format if possible."""
        return self if channels_last == self.channels_last else replace(self, channels_last=channels_last)

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.train_parts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example, without the batch dimension: (C, H, W) or (F,)."""
        return tuple(self.arrays.train_x.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of the inputs in batches: float32, or int64 for token numbers."""
        return torch.int64 if self.arrays.train_x.dtype == torch.int64 else torch.float32

    def examples(self, client: int) -> int:
        """The client's training examples n_k."""
        return len(self.train_parts[client])

    def train_batches(
        self, client: int, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches (x float32 [B, ...], y int64 [B]): pieces of a copy of up to 128 examples.

        order: int64 [n], positions within the client's rows; divided into consecutive blocks of `batch_size`, the
        last one may be smaller. generator: draws the augmentation of the whole order at once, so a batch's
        pixels do not depend on the batch size; None for no augmentation.
        """
        rows = self.train_parts[client][order]
        draws = None
        if generator is not None and self.preprocess.augments and self.arrays.train_x.dtype == torch.uint8:
            draws = self.preprocess.draw(len(rows), generator)
        labels = self.arrays.train_y[rows.to(self.arrays.train_y.device)]
        device, at_once = self.arrays.train_x.device, _AUGMENTED_AT_ONCE
        if device.type != "cpu":  # copy the whole order and its draws at once, not for each batch
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
        """`train_batches` of several clients at once: x [B, k, ...], y [B, k] of the k clients with a batch left.

        orders: one per client, of decreasing length. If a client's batch is shorter than that of the first client, its
        last example is repeated with the label `padding`. generator_of: the generator of a client's augmentation.
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
        """`test_batches` of several clients at once, as `train_steps`; clients are ordered by decreasing split size."""
        parts = [self._evaluated_by(c) for c in clients]
        rows = torch.cat(parts)
        for step in steps_side_by_side([len(part) for part in parts], batch_size):
            here = rows[step.places.flatten()]
            yield _laid(self._evaluated_pixels.of(here), self.evaluation_labels, here, step, padding)

    def test_batches(self, client: int | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The client's test split and then its held-out rows, or (None) all evaluation rows; never augmented."""
        if client is None:
            yield from self.test_rows(0, len(self.evaluation_labels), batch_size)
            return
        labels = self.evaluation_labels
        for rows in torch.split(self._evaluated_by(client), batch_size):
            if len(rows):  # an empty tensor splits into one empty piece
                yield self._evaluated_pixels.of(rows), labels[rows.to(labels.device)]

    def test_rows(self, first: int, last: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation rows first..last-1."""
        for start in range(first, last, batch_size):
            stop = min(start + batch_size, last)
            yield (
                self._evaluated_pixels.of(torch.arange(start, stop)),
                self.evaluation_labels[start:stop].clone(),
            )

    @cached_property
    def evaluation_labels(self) -> Tensor:
        """int64 [evaluation rows]: the test set's labels, then those of the held-out rows."""
        return self._with_held_out(self.arrays.test_y, self.arrays.train_y)

    def _evaluated_by(self, client: int) -> Tensor:
        if not len(self.held_out):
            return self.test_parts[client]
        return torch.cat([self.test_parts[client], self.validation_parts[client]])

    def _with_held_out(self, test: Tensor, train: Tensor) -> Tensor:
        if not len(self.held_out):
            return test
        rows = torch.cat(list(self.held_out)).to(train.device)
        return torch.cat([test, train[rows]])

    @cached_property
    def _train_pixels(self) -> Pixels:
        return Pixels(self.arrays.train_x, self.preprocess, self.channels_last, self.native)

    @cached_property
    def _evaluated_pixels(self) -> Pixels:
        x = self._with_held_out(self.arrays.test_x, self.arrays.train_x)
        return Pixels(x, self.preprocess, self.channels_last, self.native)


def _laid(x: Tensor, labels: Tensor, rows: Tensor, step: Step, padding: int) -> tuple[Tensor, Tensor]:
    shape = step.places.shape
    y = labels[rows.to(labels.device)].view(shape).masked_fill_(step.missing.to(labels.device), padding)
    return x.contiguous().view(*shape, *x.shape[1:]), y


def build_federation(
    arrays: Arrays, spec: PartitionSpec, preprocess: Preprocess, validation_portion: float = 0.0
) -> Federation:
    """Divide training rows by `spec`, and test rows accordingly.

    In a natural partition with known test sites, test rows belong to their site; otherwise `split_test` is used.
    validation_portion: share of each client's training rows that is held out (`hold_out`); the test splits do
    not depend on it. Raises PartitionError if the settings cannot be met.
    """
    train_y = arrays.train_y.numpy()
    site = None if arrays.train_site is None else arrays.train_site.numpy()
    parts = partition(train_y, spec, site)
    if spec.method == "natural" and site is not None and arrays.test_site is not None:
        tests = split_by_site(arrays.test_site.numpy(), site, arrays.site_names)
    else:
        tests = split_test(arrays.test_y.numpy(), train_y, parts, spec.seed)
    names = client_names(arrays) if spec.method == "natural" else ()
    if not validation_portion:
        return Federation(arrays, preprocess, _tensors(parts), _tensors(tests), client_names=names)
    kept, held = hold_out(train_y, parts, validation_portion, spec.seed, spec.min_examples)
    return Federation(arrays, preprocess, _tensors(kept), _tensors(tests), _tensors(held), client_names=names)


def client_names(arrays: Arrays) -> tuple[str, ...]:
    """Names of the sites with training rows, in the order of the natural partition's clients; (): without names."""
    if arrays.train_site is None or arrays.site_names is None:
        return ()
    return tuple(arrays.site_names[number] for number in torch.unique(arrays.train_site).tolist())


def _tensors(parts: Sequence[Rows]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(part) for part in parts)
