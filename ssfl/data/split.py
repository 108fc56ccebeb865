"""Proportional divisions of rows: largest remainders, stratified splits, the clients' test sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssfl.data.errors import DataError, PartitionError

Rows = NDArray[np.int64]
"""Row numbers."""
_VALIDATION = 1
"""Part of the seed of held-out rows, to separate these draws from others of the same seed and client."""


def largest_remainders(total: int, weights: NDArray[np.generic]) -> Rows:
    """`total` divided in proportion to weights [K] >= 0 into integers [K] with sum `total`.

    Each gets the integer part of its quota; the remainder is given, one each, to the largest fractions, ties to the
    smaller index. Integer weights are divided exactly.
    """
    kind = np.int64 if np.issubdtype(weights.dtype, np.integer) else np.float64
    scaled = weights.astype(kind)
    whole, rest = np.divmod(total * scaled, scaled.sum())
    counts = whole.astype(np.int64)
    first = np.argsort(-rest, kind="stable")[: total - int(counts.sum())]
    counts[first] += 1
    return counts


def cut(rows: Rows, counts: Rows) -> list[Rows]:
    """Consecutive pieces of `rows`, of the given lengths."""
    return np.split(rows, np.cumsum(counts)[:-1])


def gather_sorted(pieces: Sequence[Sequence[Rows]]) -> list[Rows]:
    """pieces[class][client] → the sorted rows of each client."""
    return [np.sort(np.concatenate(own)) for own in zip(*pieces)]


def stratified_split(strata: NDArray[np.int64], share: float, seed: int | Sequence[int]) -> tuple[Rows, Rows]:
    """Row numbers (rest, held) with round(share * N) rows held out, every stratum in proportion.

    strata: int64 [N]. A stratum of one row is never held out, so that every class keeps a training row.
    """
    rng = np.random.default_rng(seed)
    _, codes, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    counts = largest_remainders(round(share * len(strata)), sizes)
    counts = np.minimum(counts, sizes - 1)
    held = [rng.permutation(np.flatnonzero(codes == c))[:count] for c, count in enumerate(counts)]
    test = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(len(strata)), test), test


def hold_out(
    labels: NDArray[np.int64], parts: Sequence[Rows], portion: float, seed: int, min_examples: int = 1
) -> tuple[list[Rows], list[Rows]]:
    """Validation rows: of each client's rows (kept, held out), about `portion` of every class it owns, sorted.

    A client's choice depends only on the seed and its number. It keeps a training row of each of its classes, so a
    small client may have no held-out row. Raises PartitionError if no client has one, or a client keeps fewer than
    `min_examples` rows.
    """
    key = "dataset.validation_portion"
    kept, held = [], []
    for client, part in enumerate(parts):
        rest, chosen = stratified_split(labels[part], portion, (seed, client, _VALIDATION))
        kept.append(part[rest])
        held.append(part[chosen])
        if len(rest) < min_examples:
            needs = (
                f"leaves client {client} {len(rest)} of {len(part)} training examples; dataset.min_examples="
            )
            raise PartitionError(key, portion, f"{needs}{min_examples} requires more")
    if not any(map(len, held)):
        largest = max(map(len, parts))
        raise PartitionError(
            key, portion, f"holds out no example of any client, the largest of which owns {largest}; raise it"
        )
    return kept, held


def split_test(
    test_labels: NDArray[np.int64],
    train_labels: NDArray[np.int64],
    train_parts: Sequence[Rows],
    seed: int,
) -> list[Rows]:
    """Each client's own test rows, sorted; every test row is used exactly once.

    Per class, the test rows are shuffled and divided in proportion to the clients' shares of that class's
    training rows, by largest remainders. (The authors give the remainder to clients 0, 1, 2, ..., which mixes
    foreign classes into the first clients' test sets.) A class without training rows is divided by the
    clients' sizes. A client with few training rows may get no test row.
    """
    rng = np.random.default_rng(seed)
    classes = 1 + max(test_labels.max(), train_labels.max())
    table = np.stack([np.bincount(train_labels[part], minlength=classes) for part in train_parts])
    pieces = []
    for label in np.unique(test_labels):
        rows = rng.permutation(np.flatnonzero(test_labels == label))
        owned = table[:, label]
        pieces.append(cut(rows, largest_remainders(len(rows), owned if owned.any() else table.sum(axis=1))))
    return gather_sorted(pieces)


def split_by_site(
    test_site: NDArray[np.int64], train_site: NDArray[np.int64], names: Sequence[str] | None = None
) -> list[Rows]:
    """Each site's own test rows, sites in ascending order as in the natural partition.

    names: of the sites, by number. Raises DataError if the site of a test row has no training rows, because no client
    would own the row.
    """
    sites = np.unique(train_site)
    strangers = np.setdiff1d(test_site, sites)
    if len(strangers):
        first = strangers[0] if names is None else names[strangers[0]]
        raise DataError(
            f"test_site names {len(strangers)} sites without training rows (first: {first}); "
            "drop these test rows or add training rows"
        )
    return [np.flatnonzero(test_site == site) for site in sites]
