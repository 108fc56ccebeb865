"""How every client's own model did on its own test split, kept from the round in which it last trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssfl.core.metrics import Tally


@dataclass(frozen=True)
class Scoreboard:
    """Hits, examples and loss sums [K] of the clients' own models; `trained` [K]: has it trained yet?

    The authors' "personalised" metric: the model that a client trained last, tested on its own split; the initial
    model for those that were never sampled. A client's entry changes only when it trains, so testing right after
    training gives the same numbers as keeping a hundred models.
    """

    correct: Tensor
    total: Tensor
    loss_sum: Tensor
    trained: Tensor

    @staticmethod
    def initial(losses: Tensor, hits: Tensor, parts: Sequence[Tensor]) -> Scoreboard:
        """From the common initial model's per-example results [B] and the clients' test rows."""
        hits_k = torch.tensor([int(hits[p].sum()) for p in parts])
        total = torch.tensor([len(p) for p in parts])
        loss = torch.tensor([float(losses[p].double().sum()) for p in parts], dtype=torch.float64)
        return Scoreboard(hits_k, total, loss, torch.zeros(len(parts), dtype=torch.bool))

    def updated(self, tallies: Mapping[int, Tally]) -> Scoreboard:
        """With new results of the clients that trained."""
        if not tallies:
            return self
        correct, total, loss = self.correct.clone(), self.total.clone(), self.loss_sum.clone()
        trained = self.trained.clone()
        for client, tally in tallies.items():
            correct[client] = int(tally.correct.sum())
            total[client] = tally.examples
            loss[client] = tally.loss_sum
            trained[client] = True
        return Scoreboard(correct, total, loss, trained)

    def fields(self) -> dict[str, Any]:
        """The event's fields: unweighted mean, population deviation, extremes and each client's accuracy.

        Clients without test examples (few examples of rare classes) do not count.
        """
        tested = self.total > 0
        accuracy = self.correct[tested].double() / self.total[tested]
        if not len(accuracy):
            return {}
        each = [c / t if t else None for c, t in zip(self.correct.tolist(), self.total.tolist(), strict=True)]
        return {
            "client_accuracy_mean": float(accuracy.mean()),
            "client_accuracy_std": float(accuracy.std(correction=0)),
            "client_accuracy_min": float(accuracy.min()),
            "client_accuracy_max": float(accuracy.max()),
            "client_accuracy": each,
            "client_loss_mean": float((self.loss_sum[tested] / self.total[tested]).mean()),
            "clients_trained": int(self.trained.sum()),
        }
