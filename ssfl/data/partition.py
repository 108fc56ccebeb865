"""Partitions of training rows over clients: pure functions of (labels, settings, seed), in numpy.

Each call draws from its own `np.random.Generator`. The authors draw from numpy's global one, so their seeds give
other partitions here, with the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from ssfl.data.errors import PartitionError
from ssfl.data.pathological import pathological
from ssfl.data.split import Rows, cut, gather_sorted, largest_remainders

METHODS = ("dir", "patho", "dir_unbalanced", "iid", "natural")
_SLOTS_AT_ONCE = 4096


@final
@dataclass(frozen=True)
class PartitionSpec:
    """Settings of a partition.

    method: one of METHODS, see `partition`. clients: K. alpha: Dirichlet concentration, or classes per client
    for "patho". seed: of the draws. min_examples: no client may own fewer training rows (at least 1).
    """

    method: str
    clients: int
    alpha: float = 0.3
    seed: int = 0
    min_examples: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PartitionError(
                "dataset.partition_method", self.method, f"must be one of {', '.join(METHODS)}"
            )
        if self.clients < 1:
            raise PartitionError("training.client_num_in_total", self.clients, "must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise PartitionError("dataset.partition_alpha", self.alpha, "must be a finite number above 0")
        if self.min_examples < 1:
            raise PartitionError("dataset.min_examples", self.min_examples, "must be at least 1")


def partition(
    labels: NDArray[np.int64], spec: PartitionSpec, site: NDArray[np.int64] | None = None
) -> list[Rows]:
    """Each client's row numbers, sorted: disjoint, together all rows, the same for the same arguments.

    labels: int64 [N]. site: int64 [N], for "natural". Methods:

    - "dir": balanced Dirichlet (paper-level protocol of SSFL's experiments): every client owns N/K rows (the
      first N mod K one more), classes follow a prior q_k ~ Dir(alpha) over classes.
    - "patho": pathological; alpha >= 1 is the number of classes per client (its integer part), else 2.
    - "dir_unbalanced": each class is divided over clients by its own Dir(alpha), so that sizes n_k differ
      (Hsu et al. 2019, Yurochkin et al. 2019).
    - "iid": shuffled rows in equal parts. - "natural": one client per site, in ascending order of the site's number.

    Raises PartitionError if the settings cannot be met with these labels.
    """
    _check_room(len(labels), spec)
    if spec.method == "natural":
        parts = _natural(site, spec)
    else:
        _, codes = np.unique(labels, return_inverse=True)
        parts = _DEALS[spec.method](codes, spec, np.random.default_rng(spec.seed))
    smallest = min(map(len, parts))
    if smallest < spec.min_examples:
        raise PartitionError(
            "dataset.min_examples",
            spec.min_examples,
            f"at most {smallest}, the smallest client of this {spec.method} partition",
        )
    return parts


def summary_table(
    labels: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], num_classes: int
) -> NDArray[np.int64]:
    """int64 [K, C]: how many rows of each class each client owns."""
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _check_room(rows: int, spec: PartitionSpec) -> None:
    if spec.clients > rows:
        raise PartitionError(
            "training.client_num_in_total", spec.clients, f"at most {rows}, the number of training examples"
        )
    if spec.method != "natural" and spec.clients * spec.min_examples > rows:
        raise PartitionError(
            "dataset.min_examples",
            spec.min_examples,
            f"at most {rows // spec.clients}: {rows} training examples for {spec.clients} clients",
        )


def _natural(site: NDArray[np.int64] | None, spec: PartitionSpec) -> list[Rows]:
    if site is None:
        raise PartitionError(
            "dataset.partition_method",
            spec.method,
            "needs a data set with train_site, the site of each row (docs/data.md); "
            "this one has none: choose another method",
        )
    sites = np.unique(site)
    if len(sites) != spec.clients:  # assemble sets the number; direct callers must pass it
        raise PartitionError(
            "training.client_num_in_total", spec.clients, f"must be {len(sites)}, the number of sites"
        )
    return [np.flatnonzero(site == number) for number in sites]


def _iid(codes: Rows, spec: PartitionSpec, rng: np.random.Generator) -> list[Rows]:
    return [np.sort(part) for part in np.array_split(rng.permutation(len(codes)), spec.clients)]


def _log_dirichlet(rng: np.random.Generator, alpha: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Logarithms of unnormalised Dir(alpha) draws, one per row.

    Gamma(a) = Gamma(a + 1) * U^(1/a) in distribution. Logarithms do not underflow, so a very small alpha gives
    clients of one class, and no 0/0 after the rows of their classes are used up.
    """
    log_power = np.log1p(-rng.random(shape)) / alpha
    return np.maximum(np.log(rng.gamma(alpha + 1, size=shape)) + log_power, -1e300)


def _softmax(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _dirichlet(codes: Rows, spec: PartitionSpec, rng: np.random.Generator) -> list[Rows]:
    counts = np.bincount(codes)
    rows, clients = len(codes), spec.clients
    sizes = rows // clients + (np.arange(clients) < rows % clients)
    slots = rng.permutation(np.repeat(np.arange(clients), sizes))
    prior = _log_dirichlet(rng, spec.alpha, (clients, len(counts)))
    drawn = _draw_classes(slots, prior, counts, rng.random(rows))
    row_of_slot = np.empty(rows, dtype=np.int64)
    for code in range(len(counts)):
        row_of_slot[drawn == code] = rng.permutation(np.flatnonzero(codes == code))
    by_client = row_of_slot[np.argsort(slots, kind="stable")]
    return [np.sort(part) for part in cut(by_client, sizes)]


def _draw_classes(
    slots: Rows, log_prior: NDArray[np.float64], counts: Rows, uniform: NDArray[np.float64]
) -> Rows:
    """The class of each slot [N]: slot i draws from the prior of client slots[i], renormalised over the classes that
    still have rows.

    The draws are independent until a class has no rows left, so blocks are drawn at once and cut after the draw that
    empties a class. Slot i always uses uniform[i], so the distribution is that of drawing slot by slot.
    """
    left, drawn, start = counts.copy(), np.empty(len(slots), dtype=np.int64), 0
    while start < len(slots):
        open_classes = np.flatnonzero(left)
        steps = np.cumsum(_softmax(log_prior[:, open_classes]), axis=1)[:, :-1]
        emptied = False
        while start < len(slots) and not emptied:
            block = slice(start, start + _SLOTS_AT_ONCE)
            picks = open_classes[(uniform[block, None] >= steps[slots[block]]).sum(axis=1)]
            full = np.flatnonzero((np.bincount(picks, minlength=len(left)) >= left) & (left > 0))
            emptied = len(full) > 0
            if emptied:
                picks = picks[: 1 + min(np.flatnonzero(picks == code)[left[code] - 1] for code in full)]
            drawn[start : start + len(picks)] = picks
            left -= np.bincount(picks, minlength=len(left))
            start += len(picks)
    return drawn


def _dirichlet_unbalanced(codes: Rows, spec: PartitionSpec, rng: np.random.Generator) -> list[Rows]:
    shares = _softmax(_log_dirichlet(rng, spec.alpha, (int(codes.max()) + 1, spec.clients)))
    pieces = []
    for code, share in enumerate(shares):
        rows = rng.permutation(np.flatnonzero(codes == code))
        pieces.append(cut(rows, largest_remainders(len(rows), share)))
    return _raise_to_minimum(gather_sorted(pieces), spec.min_examples, rng)


def _raise_to_minimum(parts: list[Rows], least: int, rng: np.random.Generator) -> list[Rows]:
    """Clients below the minimum get random rows of the largest one.

    Other implementations redraw until all clients have enough, which never ends for many clients and a small alpha.
    """
    sizes = np.array([len(part) for part in parts])
    while sizes.min() < least:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        count = int(min(least - sizes[poor], sizes[rich] - least))
        shuffled = rng.permutation(parts[rich])
        parts[poor] = np.sort(np.concatenate([parts[poor], shuffled[:count]]))
        parts[rich] = np.sort(shuffled[count:])
        sizes[poor] += count
        sizes[rich] -= count
    return parts


_DEALS: Mapping[str, Callable[[Rows, PartitionSpec, np.random.Generator], list[Rows]]] = {
    "dir": _dirichlet,
    "dir_unbalanced": _dirichlet_unbalanced,
    "iid": _iid,
    "patho": lambda codes, spec, rng: pathological(codes, spec.clients, spec.alpha, rng),
}
