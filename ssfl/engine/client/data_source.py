"""The interface through which the engine reads data. `ssfl.data.federation` implements it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ssfl.core.net import Batch


class Labelled(Protocol):
    """The test labels and the number of classes."""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels count from 0."""
        ...

    @property
    def test_y(self) -> Tensor:
        """int64 [test examples]."""
        ...


class DataSource(Protocol):
    """The data of all clients of a simulation, or of the client of a deployed site."""

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
        """Number of clients."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch dimension."""
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
        """A client's test split (with a ValidationSource, then its held-out rows), or (None) all evaluation rows."""
        ...

    def test_rows(self, first: int, last: int, batch_size: int) -> Iterator[Batch]:
        """Rows first..last-1 of all evaluation rows: the test set, then the held-out rows of a ValidationSource."""
        ...


@runtime_checkable
class ValidationSource(Protocol):
    """Optional part of a data source: held-out training rows that are tested like test rows."""

    @property
    def validation_parts(self) -> Sequence[Tensor]:
        """For each client the indices (int64) of its held-out rows in the evaluation rows; (): none are held out."""
        ...

    @property
    def evaluation_labels(self) -> Tensor:
        """int64 [evaluation rows]: the test labels, then those of the held-out rows."""
        ...


def evaluation_labels(source: DataSource) -> Tensor:
    """Labels of all evaluation rows: the test set, then held-out rows."""
    return source.evaluation_labels if isinstance(source, ValidationSource) else source.arrays.test_y


def validation_parts(source: DataSource) -> Sequence[Tensor]:
    """For each client the indices of its held-out rows in the evaluation rows; () if none are held out."""
    return source.validation_parts if isinstance(source, ValidationSource) else ()


def evaluated_rows(source: DataSource, client: int) -> int:
    """Number of rows on which a client's models are tested: its test split and its held-out rows."""
    held = validation_parts(source)
    return len(source.test_parts[client]) + (len(held[client]) if len(held) else 0)


@runtime_checkable
class WholeNumberSource(Protocol):
    """Optional part of a data source: inputs that are not floats (token numbers)."""

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of the inputs in batches."""
        ...


def input_dtype(source: DataSource) -> torch.dtype | None:
    """The inputs' type if it is not a float; None: the type of the computation."""
    found = source.input_dtype if isinstance(source, WholeNumberSource) else None
    return None if found is None or found.is_floating_point else found


@runtime_checkable
class BlockSource(Protocol):
    """Optional part of a data source: batches of several clients together, for blocks of tiny clients.

    Without it the engine reads each client separately; the batches are the same.
    """

    def train_steps(
        self,
        clients: Sequence[int],
        orders: Sequence[Tensor],
        batch_size: int,
        generator_of: Callable[[int], torch.Generator],
        padding: int,
    ) -> Iterator[Batch]:
        """Minibatches x [B, k, ...], y [B, k] of the first k clients, those with a batch left.

        Orders must not increase in length. Missing examples of a batch have the label `padding`.
        """
        ...

    def test_steps(self, clients: Sequence[int], batch_size: int, padding: int) -> Iterator[Batch]:
        """The clients' test splits in the same form."""
        ...
