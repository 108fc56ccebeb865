"""The flat-vector core: scoring, top-k, aggregation, pack and unpack; the last three as shares of memory bandwidth.

Rows against PyTorch's operations compare a kernel with what it replaces, in turns.

Bandwidth: bytes per second of a plain copy of a vector of the same length, measured alternately with the operation, on
the same number of threads. Bytes that an operation must move: aggregation reads K vectors and writes one; pack and
unpack access the whole vector, 4 bytes per index and 4 per kept value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.figures import Figure, options, paired_ratio, publish, spread, times
from benchmarks.ours import our_module
from benchmarks.workload import BATCH_SIZE, CLASSES, workload
from ssfl.core.aggregate import weighted_mean
from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count, random_global_mask, top_k_mask
from ssfl.core.net import FlatNet
from ssfl.core.payloads import Support, pack_sparse
from ssfl.core.saliency import SNIP
from ssfl.engine.compute.malloc import keep_freed_memory

MODELS = 10
DENSITIES = (0.5, 0.1)
SMALL = 122_890
"""Parameters of the benchmarks' CNN."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """Seconds of an operation and of a copy, measured alternately; the copy moves `copied_bytes`."""

    seconds: list[float]
    copy_seconds: list[float]
    copied_bytes: int

    def share(self, moved_bytes: float) -> Figure:
        """The operation's bandwidth as a share of the copy's."""
        pairs = zip(self.seconds, self.copy_seconds)
        shares = [(moved_bytes / s) / (self.copied_bytes / c) for s, c in pairs]
        row = times("", shares, "share")
        return Figure("", row.value, "share", "copy", row.value, row.n, spread(shares))


def in_turns(
    first: Callable[[], object], second: Callable[[], object], trials: int
) -> tuple[list[float], list[float]]:
    """Seconds of `trials` calls of each, alternately, after one unmeasured call of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(trials + 1):
        for call, kept in zip((first, second), seconds):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return seconds[0][1:], seconds[1][1:]


def beside_a_copy(operation: Callable[[], object], size: int, trials: int) -> Measured:
    """The operation, in turns with a copy of `size` floats."""
    source = torch.rand(size)
    target = torch.empty_like(source)
    return Measured(
        *in_turns(operation, lambda: target.copy_(source), trials), copied_bytes=2 * FLOAT_BYTES * size
    )


def beside_pytorch(
    name: str, ours: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], theta: Tensor, trials: int
) -> list[Figure]:
    """A function of `theta` that has a kernel, in turns with PyTorch's operations; of all and of `SMALL` values."""
    rows = []
    for vector in (theta, theta[:SMALL]):
        if not ours(vector).equal(plain(vector)):
            raise AssertionError(f"{name}: the kernel and PyTorch's operations differ")
        kernel, torchs = in_turns(partial(ours, vector), partial(plain, vector), trials)
        row = times(f"{name}, {len(vector):,}", kernel)
        ratio = paired_ratio(kernel, torchs)
        rows.append(Figure(row.name, row.value, "s", "PyTorch's operations", ratio, row.n, row.spread))
    return rows


def figures(size: int, trials: int) -> list[Figure]:
    """All figures for vectors of `size` floats."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(size, generator=generator)
    rows = [*aggregation(size, trials), *top_k(theta, trials)]
    for density in DENSITIES:
        rows += packing(theta, density, generator, trials)
    return rows


def aggregation(size: int, trials: int) -> list[Figure]:
    """FedAvg's mean of 10 models."""
    models = [(torch.rand(size), 50.0) for _ in range(MODELS)]
    done = beside_a_copy(lambda: weighted_mean(models), size, trials)
    return _rows(f"aggregation of {MODELS} models", done, (MODELS + 1) * FLOAT_BYTES * size)


def top_k(theta: Tensor, trials: int) -> list[Figure]:
    """The exact global top-k, density 0.5; compared with one copy of the scores."""
    scores = theta.abs()
    keep = kept_count(len(scores), 0.5)
    done = beside_a_copy(lambda: top_k_mask(scores, keep), len(scores), trials)
    rows = _rows("top-k", done, (FLOAT_BYTES + 1) * len(scores))

    def kernel(part: Tensor) -> Tensor:
        return top_k_mask(part, kept_count(len(part), 0.5))

    def plain(part: Tensor) -> Tensor:  # no two scores are equal at the threshold
        return part >= part.kthvalue(len(part) - kept_count(len(part), 0.5) + 1).values

    return [*rows, *beside_pytorch("top-k", kernel, plain, scores, trials)]


def packing(theta: Tensor, density: float, generator: torch.Generator, trials: int) -> list[Figure]:
    """Gather the values on a mask from a vector, and scatter them back."""
    support = Support.of(random_global_mask(len(theta), density, generator))
    values = support.pack(theta).values
    moved = FLOAT_BYTES * (len(theta) + 2 * len(values))
    assert support.scatter(values).count_nonzero() <= len(values)
    packed = beside_a_copy(lambda: support.pack(theta), len(theta), trials)
    unpacked = beside_a_copy(lambda: support.scatter(values), len(theta), trials)
    name = f"density {density}"
    rows = [*_rows(f"pack, {name}", packed, moved), *_rows(f"unpack, {name}", unpacked, moved)]

    def kernel(part: Tensor) -> Tensor:
        return pack_sparse(part, support.mask[: len(part)]).values

    def plain(part: Tensor) -> Tensor:
        return part[support.mask[: len(part)]]

    return [*rows, *beside_pytorch(f"pack without an index, {name}", kernel, plain, theta, trials)]


def scoring(name: str, trials: int) -> list[Figure]:
    """SSFL's saliency on one minibatch, compared with one plain forward and backward pass of the same network."""
    work = workload(name)
    module = our_module(work).eval()
    layout = Layout.of(module)
    net, theta = FlatNet(module, layout), layout.flatten(module)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH_SIZE, *work.shape, generator=generator)
    y = torch.randint(CLASSES, (BATCH_SIZE,), generator=generator)

    def plain() -> None:
        loss = torch.nn.functional.cross_entropy(module(x), y)
        torch.autograd.grad(loss, list(module.parameters()))

    scores, passes = in_turns(lambda: SNIP.score(net, theta, (x, y)), plain, trials)
    row = times(f"scoring, {name}", scores)
    ratio = paired_ratio(scores, passes)
    return [Figure(row.name, row.value, "s", "forward and backward", ratio, row.n, row.spread)]


def _rows(name: str, done: Measured, moved_bytes: float) -> list[Figure]:
    share = done.share(moved_bytes)
    return [
        times(name, done.seconds),
        Figure(
            f"{name}: share of bandwidth", share.value, "share", "copy", share.ratio, share.n, share.spread
        ),
    ]


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--trials", type=int, help="default: 30")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, also for copies")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    size = workload("resnet18").parameters
    trials = chosen.trials or (5 if chosen.quick else 30)
    copy = beside_a_copy(lambda: None, size, trials)
    bandwidth = [copy.copied_bytes / s / 1e9 for s in copy.copy_seconds]
    rows = [times("copy", bandwidth, "GB/s"), *figures(size, trials), *scoring("cnn", trials)]
    if not chosen.quick:
        rows += scoring("resnet18", min(trials, 5))
    publish(rows, chosen.json)


if __name__ == "__main__":
    main()
