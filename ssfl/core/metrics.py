"""Counts of an evaluation as sums, so that those of clients and batches can be added exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """Counts over examples; `a + b` is the tally of both sets of examples together.

    correct, total: int64 [classes] per true class. loss_sum: sum of the examples' cross-entropy (nats).
    """

    correct: Tensor
    total: Tensor
    loss_sum: float

    @staticmethod
    def of(losses: Tensor, hits: Tensor, labels: Tensor, classes: int) -> Tally:
        """From per-example losses [B], hits [B] (bool) and labels [B] (int64)."""
        total = torch.bincount(labels, minlength=classes)
        correct = torch.bincount(labels[hits], minlength=classes)
        return Tally(correct, total, float(losses.double().sum()))

    @staticmethod
    def empty(classes: int) -> Tally:
        """The tally of no examples."""
        zero = torch.zeros(classes, dtype=torch.int64)
        return Tally(zero, zero.clone(), 0.0)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.correct + other.correct, self.total + other.total, self.loss_sum + other.loss_sum)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return int(self.total.sum())

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0-1; NaN without examples."""
        return int(self.correct.sum()) / self.examples if self.examples else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN without examples."""
        return self.loss_sum / self.examples if self.examples else float("nan")

    @property
    def class_accuracy(self) -> list[float | None]:
        """Accuracy per true class; None for a class without examples."""
        pairs = zip(self.correct.tolist(), self.total.tolist(), strict=True)
        return [c / t if t else None for c, t in pairs]
