"""Metrics for imbalanced classes: AUC, balanced accuracy, F1, sensitivity and specificity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Share = float | None
"""0-1; None if it is not defined, such as the sensitivity of a class without examples."""


@dataclass(frozen=True)
class Imbalance:
    """Metrics of one model on one set of examples; means are unweighted, over the classes that have examples.

    auc: one class against all others, mean over classes; with two classes, the usual AUC. balanced_accuracy: mean
    sensitivity. f1: mean F1. sensitivity: per class, the share of its examples that are predicted as this class.
    specificity: per class, the share of all other examples that are not predicted as this class.
    """

    auc: Share
    balanced_accuracy: Share
    f1: Share
    sensitivity: tuple[Share, ...]
    specificity: tuple[Share, ...]

    @staticmethod
    def of(probabilities: Tensor, labels: Tensor) -> Imbalance:
        """From class probabilities [N, C] and labels int64 [N], N of at least 1; computed by scikit-learn."""
        # Imported here: the import takes seconds, and accuracy does not need it.
        from sklearn.metrics import f1_score, multilabel_confusion_matrix

        y, p = labels.numpy(), probabilities.double().numpy()
        classes = p.shape[1]
        predicted, present = p.argmax(1), np.unique(y)
        ((tn, fp), (fn, tp)) = multilabel_confusion_matrix(y, predicted, labels=range(classes)).transpose(
            1, 2, 0
        )
        sensitivity = _shares(tp, tp + fn)
        known = [share for share in sensitivity if share is not None]
        return Imbalance(
            auc=_auc(p, y, present),
            balanced_accuracy=sum(known) / len(known) if known else None,
            f1=float(f1_score(y, predicted, labels=present, average="macro", zero_division=0)),
            sensitivity=sensitivity,
            specificity=_shares(tn, tn + fp),
        )


def _auc(p: NDArray[np.float64], y: NDArray[np.int64], present: NDArray[np.int64]) -> Share:
    from sklearn.metrics import roc_auc_score

    if len(present) < 2 or not np.isfinite(p).all():
        return None
    return float(np.mean([roc_auc_score(y == label, p[:, label]) for label in present]))


def _shares(counts: NDArray[np.int64], of: NDArray[np.int64]) -> tuple[Share, ...]:
    return tuple(int(c) / int(n) if n else None for c, n in zip(counts, of, strict=True))
