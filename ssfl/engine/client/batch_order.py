"""The order of examples in minibatches; `BatchOrder` is the interface for custom orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssfl.core.rng import stream


class BatchOrder(Protocol):
    """Positions within a client's examples, int64. A custom class with these two methods can replace the default."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        """The order [n] of one local epoch; consecutive blocks of it are the minibatches."""
        ...

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        """The positions [<= batch_size] of the index-th scoring minibatch."""
        ...


@dataclass(frozen=True)
class SeededOrder:
    """Random permutations from streams named by (seed, client, round, epoch)."""

    seed: int

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        """A permutation of the client's examples."""
        return torch.randperm(examples, generator=stream(self.seed, "batch", client, round, epoch))

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        """The first positions of a new permutation; several scoring minibatches may share examples."""
        generator = stream(self.seed, "probe", client, round, index)
        return torch.randperm(examples, generator=generator)[:batch_size]
