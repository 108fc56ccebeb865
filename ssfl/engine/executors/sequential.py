"""One client after the other in this process: the reference of all other executors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.malloc import give_back_freed_memory


class SequentialExecutor:
    """One client after the other: the simplest executor and the reference for all others."""

    def __init__(self, runner: ClientRunner) -> None:
        self.runner = runner

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """Each job alone."""
        yield from map(self.runner.run, jobs)
        give_back_freed_memory(self.runner.model_bytes)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See `Executor.predict`; in batches."""
        losses, hits, _ = self.runner.predict(theta, None)
        give_back_freed_memory(self.runner.model_bytes)
        return losses, hits

    def close(self) -> None:
        """Does nothing."""
