"""The interface of executors: jobs in, outcomes out. All give the results of the sequential executor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.engine.client.job import ClientJob, Outcome


class Executor(Protocol):
    """Runs jobs; outcomes come in the jobs' order."""

    @property
    def layout(self) -> Layout:
        """The network's layout in a flat vector."""
        ...

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """One outcome per job, in order, as they become ready."""
        ...

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and hits [rows] of weights [P] on all evaluation rows: the test set, then held-out training rows."""
        ...

    def close(self) -> None:
        """End workers and free shared memory. May be called again."""
        ...
