"""AUC, F1 and the other metrics compared with direct counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from ssfl.engine.accounting.imbalance import Imbalance


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities that are weakly correlated with labels of unequal classes, and the labels."""
    draws = torch.Generator().manual_seed(seed)
    weights = torch.arange(classes, 0, -1.0) ** 2
    labels = torch.multinomial(weights, rows, replacement=True, generator=draws)
    logits = torch.randn(rows, classes, generator=draws)
    logits[torch.arange(rows), labels] += 0.8
    return logits.softmax(1), labels


def auc_by_pairs(scores: Tensor, positive: Tensor) -> float:
    """The share of pairs (positive, negative) in the right order; ties count half."""
    pairs = list(itertools.product(scores[positive].tolist(), scores[~positive].tolist()))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def counts(predicted: Tensor, labels: Tensor, label: int) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    pairs = [(p == label, y == label) for p, y in zip(predicted.tolist(), labels.tolist())]
    return (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


@pytest.mark.parametrize("classes", [2, 5])
def test_against_counting(classes: int) -> None:
    p, y = drawn(120, classes)
    p = (p * 20).round() / 20  # ties
    found, predicted = Imbalance.of(p, y), torch.from_numpy(p.double().numpy().argmax(1))
    by_class = [counts(predicted, y, label) for label in range(classes)]
    assert found.sensitivity == pytest.approx([tp / (tp + fn) for tp, _, fn, _ in by_class])
    assert found.specificity == pytest.approx([tn / (tn + fp) for _, fp, _, tn in by_class])
    assert found.balanced_accuracy == pytest.approx(np.mean([tp / (tp + fn) for tp, _, fn, _ in by_class]))
    assert found.f1 == pytest.approx(np.mean([2 * tp / (2 * tp + fp + fn) for tp, fp, fn, _ in by_class]))
    assert found.auc == pytest.approx(
        np.mean([auc_by_pairs(p[:, label], y == label) for label in range(classes)])
    )


def test_of_two_classes_it_is_the_usual_auc() -> None:
    p, y = drawn(80, 2)
    assert Imbalance.of(p, y).auc == pytest.approx(auc_by_pairs(p[:, 1], y == 1))


def test_the_same_answer_always_is_accurate_and_not_balanced() -> None:
    """Nine of ten are healthy: a constant prediction has accuracy 90 % and balanced accuracy 50 %."""
    y = torch.tensor([0] * 9 + [1])
    found = Imbalance.of(torch.tensor([[0.9, 0.1]]).expand(10, 2), y)
    assert (found.auc, found.balanced_accuracy) == (0.5, 0.5)
    assert found.f1 == pytest.approx(18 / 19 / 2)
    assert (found.sensitivity, found.specificity) == ((1.0, 0.0), (0.0, 1.0))


def test_a_class_without_examples_is_in_no_mean() -> None:
    p, y = drawn(60, 3)
    y[y == 2] = 0
    found = Imbalance.of(p, y)
    assert found.sensitivity[2] is None
    assert found.specificity[2] is not None
    assert found.balanced_accuracy == pytest.approx(sum(filter(None, found.sensitivity[:2])) / 2)
    assert found.auc == pytest.approx(np.mean([auc_by_pairs(p[:, c], y == c) for c in (0, 1)]))


def test_examples_of_one_class_alone_have_no_auc() -> None:
    found = Imbalance.of(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([1, 1]))
    assert (found.auc, found.balanced_accuracy) == (None, 0.5)
    assert found.specificity == (0.5, None)


def test_numbers_that_are_none_have_no_auc() -> None:
    assert Imbalance.of(torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1])).auc is None
