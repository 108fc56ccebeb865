"""The result of each client's last trained model on its own test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssfl.core.metrics import Tally


@dataclass(frozen=True)
class Scoreboard:
    """Hits, examples and loss sums [K] of the clients' own models; `trained` [K]: whether the client has trained.

    The authors' "personalised" metric: a client's last trained model, tested on its own split; the initial
    model for clients that were never sampled. A client's entry changes only when it trains, so that models are tested
    directly after training and need not be kept.
    """

    correct: Tensor
    total: Tensor
    loss_sum: Tensor
    trained: Tensor

    @staticmethod
    def initial(tallies: Mapping[int, Tally], clients: int) -> Scoreboard:
        """From tests of the common initial model on the clients' own splits, for the clients in `tallies`."""
        empty = torch.zeros(clients, dtype=torch.int64)
        never = torch.zeros(clients, dtype=torch.bool)
        board = Scoreboard(empty, empty.clone(), torch.zeros(clients, dtype=torch.float64), never)
        return replace(board.updated(tallies), trained=never)

    def updated(self, tallies: Mapping[int, Tally]) -> Scoreboard:
        """The scoreboard with new results of the clients that trained."""
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

        Clients without test examples (few examples of rare classes) are not included.
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

    def validation_fields(self) -> dict[str, Any]:
        """The event's fields if this scoreboard is of held-out rows."""
        fields = self.fields()
        names = ("client_accuracy_mean", "client_accuracy_std", "client_accuracy")
        return {name.replace("client_", "client_validation_"): fields[name] for name in names if fields}
