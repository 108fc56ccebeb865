"""Tests in this process: the global model on all rows, the initial model on every client's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

from torch import Tensor

from ssfl.core.metrics import Tally
from ssfl.engine.accounting.imbalance import Imbalance
from ssfl.engine.client.data_source import DataSource, evaluation_labels, validation_parts
from ssfl.engine.executors.executor import Executor


@final
@dataclass(frozen=True)
class Examination:
    """A global model's results on the test set, and on held-out training rows if there are any."""

    test: Tally
    validation: Tally | None = None
    imbalance: Imbalance | None = None
    """Metrics on the test set, if requested; those on held-out rows are `validation_imbalance`."""
    validation_imbalance: Imbalance | None = None


@final
@dataclass(frozen=True)
class ClientExamination:
    """One model's results on the clients' own rows, client -> tally, for the clients whose rows are available here."""

    test: Mapping[int, Tally] = field(default_factory=dict)
    validation: Mapping[int, Tally] | None = None
    """None if no rows are held out."""


@final
class CentralTest:
    """Tests with access to all test rows and their owners, which a simulation has and a real server may lack."""

    def __init__(
        self, executor: Executor, data: DataSource, probabilities: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """probabilities: weights [P] → [evaluation rows, classes]; None: only accuracy and loss are computed."""
        self._executor = executor
        self._data = data
        self._probabilities = probabilities

    def examine(self, theta: Tensor) -> Examination:
        """Test a global model theta [P] on the whole test set and on all held-out rows."""
        losses, hits = self._executor.predict(theta)
        tests, total = len(self._data.arrays.test_y), len(losses)
        held = self._tally(losses, hits, slice(tests, None)) if total > tests else None
        found = Examination(self._tally(losses, hits, slice(tests)), held)
        if self._probabilities is None:
            return found
        labels, chances = evaluation_labels(self._data).cpu(), self._probabilities(theta)
        return replace(
            found,
            imbalance=Imbalance.of(chances[:tests], labels[:tests]),
            validation_imbalance=Imbalance.of(chances[tests:], labels[tests:]) if total > tests else None,
        )

    def examine_for_clients(self, theta: Tensor) -> ClientExamination:
        """Test a model theta [P] on every client's own rows, in one pass over all rows."""
        losses, hits = self._executor.predict(theta)
        held = validation_parts(self._data)
        return ClientExamination(
            self._by_client(losses, hits, self._data.test_parts),
            self._by_client(losses, hits, held) if len(held) else None,
        )

    def _by_client(self, losses: Tensor, hits: Tensor, parts: Sequence[Tensor]) -> dict[int, Tally]:
        return {client: self._tally(losses, hits, rows) for client, rows in enumerate(parts)}

    def _tally(self, losses: Tensor, hits: Tensor, rows: Tensor | slice) -> Tally:
        labels = evaluation_labels(self._data)
        return Tally.of(losses[rows], hits[rows], labels[rows], self._data.arrays.num_classes)
