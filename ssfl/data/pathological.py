"""The pathological partition: every client has only a few classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssfl.data.errors import PartitionError
from ssfl.data.split import Rows, cut, largest_remainders

_BALANCING_STEPS = 200


def pathological(codes: Rows, clients: int, alpha: float, rng: np.random.Generator) -> list[Rows]:
    """Rows per client, each client owning rows of exactly c classes: c = int(alpha) for alpha >= 1, else 2.

    codes: int64 [N], classes numbered 0..C-1 without gaps. All rows are used once, and client sizes are as equal as
    their classes allow. The authors' code (CIFAR-10 only) draws class pairs from a truncated list, so class 0 is
    over-represented, some images are unused and some clients get too few. Here larger classes get more clients, and
    the combination of classes at a client is random.

    Raises PartitionError if c exceeds the number of classes, or the clients cannot cover all rows.
    """
    per_client = int(alpha) if alpha >= 1 else 2
    sizes = np.bincount(codes)
    _check(per_client, clients, sizes, alpha)
    holders = _holders(sizes, clients, clients * per_client)
    held = _class_sets(holders, clients, per_client, rng)
    amounts = _amounts(held, sizes)
    pieces: list[list[Rows]] = [[] for _ in range(clients)]
    for code in range(len(sizes)):
        rows = rng.permutation(np.flatnonzero(codes == code))
        for own, piece in zip(pieces, cut(rows, amounts[:, code])):
            own.append(piece)
    return [np.sort(np.concatenate(own)) for own in pieces]


def _check(per_client: int, clients: int, sizes: Rows, alpha: float) -> None:
    classes = len(sizes)
    least = -(-classes // clients)
    if not least <= per_client <= classes:
        reason = f": {clients} clients must cover {classes} classes" if per_client < least else ""
        raise PartitionError(
            "dataset.partition_alpha",
            alpha,
            f"classes per client (patho), from {least} to {classes} for this data set{reason}",
        )
    if np.minimum(sizes, clients).sum() < clients * per_client:
        raise PartitionError(
            "training.client_num_in_total",
            clients,
            f"too many: the training examples do not give each client {per_client} classes (dataset.partition_alpha)",
        )


def _holders(sizes: Rows, clients: int, total: int) -> Rows:
    """Number of clients for each class [C], with sum `total`: first one each, then one more for the class with the most
    rows per client (D'Hondt's rule), at most the number of clients or rows."""
    holders = np.ones(len(sizes), dtype=np.int64)
    most = np.minimum(sizes, clients)
    for _ in range(total - len(sizes)):
        holders[np.where(holders < most, sizes / holders, -1.0).argmax()] += 1
    return holders


def _class_sets(holders: Rows, clients: int, per_client: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [K, C]: each client takes the classes that still need the most clients, ties at random.

    With this order every class gets exactly `holders` clients (Gale-Ryser).
    """
    missing = holders.copy()
    held = np.zeros((clients, len(holders)), dtype=bool)
    for client in rng.permutation(clients):
        order = np.lexsort((rng.random(len(missing)), -missing))[:per_client]
        held[client, order] = True
        missing[order] -= 1
    return held


def _amounts(held: NDArray[np.bool_], sizes: Rows) -> Rows:
    """int64 [K, C]: rows per client and class, column sums `sizes`, at least 1 where held, else 0.

    Iterative proportional fitting towards clients of equal size, then integers by largest remainders.
    """
    target = sizes.sum() / len(held)
    amounts = held * (sizes / held.sum(axis=0))
    for _ in range(_BALANCING_STEPS):
        amounts *= target / amounts.sum(axis=1, keepdims=True)
        amounts *= sizes / amounts.sum(axis=0)
    whole = np.zeros(held.shape, dtype=np.int64)
    for code, size in enumerate(sizes):
        own = np.flatnonzero(held[:, code])
        # the small term avoids 0/0 if every client needs only its one row
        beyond_one = np.maximum(amounts[own, code] - 1, 0) + 1e-9
        whole[own, code] = 1 + largest_remainders(int(size) - len(own), beyond_one)
    return whole
