"""How a block of jobs is computed. Every executor gives the sequential one's results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.engine.jobs import Job, Outcome
from ssfl.engine.local import ClientRunner
from ssfl.engine.memory import give_back_freed_memory


class Executor(Protocol):
    """Runs jobs; outcomes come in the jobs' order."""

    @property
    def layout(self) -> Layout:
        """How the network lies in a flat vector."""
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome a job, in order, as they become ready."""
        ...

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Per-example losses and hits [B] of weights [P] on the whole test set."""
        ...

    def close(self) -> None:
        """End workers and free what is shared; harmless when repeated."""
        ...


class SequentialExecutor:
    """One client after the other: the plainest way, the reference of all others."""

    def __init__(self, runner: ClientRunner) -> None:
        self.runner = runner

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Each job alone."""
        yield from map(self.runner.run, jobs)
        give_back_freed_memory(self.runner.model_bytes)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The whole test set in batches."""
        losses, hits, _ = self.runner.predict(theta, None)
        give_back_freed_memory(self.runner.model_bytes)
        return losses, hits

    def close(self) -> None:
        """Nothing to end."""
