"""Which examples come when: the seam through which a batch order of one's own enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssfl.core.rng import stream


class BatchOrder(Protocol):
    """Positions within a client's own examples, int64. A user's class with these two methods replaces the default."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        """The order [n] of one local epoch; consecutive blocks of it are the minibatches."""
        ...

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        """The positions [<= batch_size] of the index-th scoring minibatch."""
        ...


@dataclass(frozen=True)
class SeededOrder:
    """Fresh permutations by name: (seed, client, round, epoch)."""

    seed: int

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        """A permutation of the client's examples."""
        return torch.randperm(examples, generator=stream(self.seed, "batch", client, round, epoch))

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        """The head of a fresh permutation: with several scoring minibatches, drawn with replacement between them."""
        generator = stream(self.seed, "probe", client, round, index)
        return torch.randperm(examples, generator=generator)[:batch_size]
