"""What the engine reads of the data: who owns which examples, in minibatches. `ssfl.data.federation` provides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ssfl.core.net import Batch


class Labelled(Protocol):
    """The test labels and how many classes there are."""

    @property
    def num_classes(self) -> int:
        """Classes, labelled from 0."""
        ...

    @property
    def test_y(self) -> Tensor:
        """int64 [test examples]."""
        ...


class DataSource(Protocol):
    """All clients' data of one simulation, or the one client's of a deployed site."""

    @property
    def arrays(self) -> Labelled:
        """The test labels."""
        ...

    @property
    def test_parts(self) -> Sequence[Tensor]:
        """Test row numbers (int64) per client."""
        ...

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example, without the batch dimension."""
        ...

    def examples(self, client: int) -> int:
        """The client's training examples n_k."""
        ...

    def train_batches(
        self, client: int, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[Batch]:
        """The client's examples at positions `order [n]`, in consecutive blocks; augmented by the generator."""
        ...

    def test_batches(self, client: int | None, batch_size: int) -> Iterator[Batch]:
        """A client's test split, or (None) the whole test set."""
        ...

    def test_rows(self, first: int, last: int, batch_size: int) -> Iterator[Batch]:
        """Rows first..last-1 of the test set."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """What a data source may have besides: batches of several clients at once, for blocks of tiny clients.

    Without it the engine takes them client by client; the batches are the same.
    """

    def train_steps(
        self,
        clients: Sequence[int],
        orders: Sequence[Tensor],
        batch_size: int,
        generator_of: Callable[[int], torch.Generator],
        padding: int,
    ) -> Iterator[Batch]:
        """Minibatches side by side, x [B, k, ...], y [B, k], of the k leading clients that have one left.

        No order is longer than the one before; what a client lacks of a batch bears the label `padding`.
        """
        ...

    def test_steps(self, clients: Sequence[int], batch_size: int, padding: int) -> Iterator[Batch]:
        """The clients' test splits in the same form."""
        ...
