"""The minibatches of K clients in one tensor, with the same examples and draws as for each client alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientContext, Probe
from ssfl.core.net import Batch
from ssfl.core.rng import stream
from ssfl.engine.client.data_source import BlockSource
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.batched.static_steps import IGNORED

BlockStep = tuple[slice, Batch, Tensor]
"""(clients of the block, their x [B, k, ...] and y [B, k], number of each client's examples without padding [k])."""


def train_steps(
    runner: ClientRunner, contexts: Sequence[ClientContext], epoch: int, batch_size: int, coupled: bool
) -> Iterator[BlockStep]:
    """One epoch of clients in order of their examples, most first.

    A step has all clients with a batch left. Uncoupled: shorter batches are padded with IGNORED labels. Coupled
    (examples of a batch influence each other): the step is split by batch size instead, without padding.
    """
    for index, batch in enumerate(_train_batches(runner, contexts, epoch, batch_size)):
        active = contexts[: batch[1].shape[1]]
        left = [min(c.examples - index * batch_size, batch_size) for c in active]
        yield from _cut(batch, left, coupled)


def probe_steps(
    runner: ClientRunner, contexts: Sequence[ClientContext], probe: Probe, coupled: bool
) -> Iterator[BlockStep]:
    """The scoring minibatches of the same clients, one after the other, in the form of `train_steps`."""
    left = [min(c.examples, probe.batch_size) for c in contexts]
    for batch in _probe_batches(runner, contexts, probe):
        yield from _cut(batch, left, coupled)


def _cut(batch: Batch, left: list[int], coupled: bool) -> Iterator[BlockStep]:
    """The step as a whole, or split where the batch size changes."""
    x, y = batch
    if not coupled or left[0] == left[-1]:
        yield slice(0, len(left)), (x, y), torch.tensor(left)
        return
    first = 0
    for k in range(1, len(left) + 1):
        if k == len(left) or left[k] != left[first]:
            rows = slice(first, k)
            yield rows, (x[: left[first], rows], y[: left[first], rows]), torch.tensor(left[rows])
            first = k


def _train_batches(
    runner: ClientRunner, contexts: Sequence[ClientContext], epoch: int, batch_size: int
) -> Iterator[Batch]:
    source, round_ = runner.federation, contexts[0].clock.round
    if not isinstance(source, BlockSource):
        feeds = [runner.train_batches(c, epoch, batch_size) for c in contexts]
        return (_side_by_side([b for b in batches if b is not None]) for batches in zip_longest(*feeds))
    clients = [c.client for c in contexts]
    orders = [runner.batch_order.epoch(c.client, round_, epoch, c.examples) for c in contexts]
    draws = partial(_draws, runner.seed, "augment", round_, epoch)
    steps = source.train_steps(clients, orders, batch_size, draws, IGNORED)
    return (_to_compute(runner, batch) for batch in steps)


def _probe_batches(runner: ClientRunner, contexts: Sequence[ClientContext], probe: Probe) -> Iterator[Batch]:
    source, round_ = runner.federation, contexts[0].clock.round
    if not isinstance(source, BlockSource):
        feeds = [runner.probe_batches(probe, c) for c in contexts]
        yield from (_side_by_side(batches) for batches in zip(*feeds, strict=True))
        return
    clients, size = [c.client for c in contexts], probe.batch_size
    for index in range(probe.batches):
        orders = [runner.batch_order.probe(c.client, round_, index, c.examples, size) for c in contexts]
        draws = partial(_draws, runner.seed, "augment-probe", round_, index)
        yield from (_to_compute(runner, b) for b in source.train_steps(clients, orders, size, draws, IGNORED))


def _draws(seed: int, name: str, round: int, index: int, client: int) -> torch.Generator:
    return stream(seed, name, client, round, index)


def test_steps(runner: ClientRunner, clients: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """The test splits of clients in order of their test examples, most first; padded with IGNORED labels."""
    source = runner.federation
    if isinstance(source, BlockSource):
        yield from (_to_compute(runner, b) for b in source.test_steps(clients, batch_size, IGNORED))
        return
    feeds = [map(runner.to_compute, source.test_batches(c, batch_size)) for c in clients]
    for batches in zip_longest(*feeds):
        yield _side_by_side([b for b in batches if b is not None])


def _to_compute(runner: ClientRunner, batch: Batch) -> Batch:
    """The batch in the type and on the device of the computation; a block has its own memory format."""
    runner.check_cancelled()
    x, y = batch
    dtype = runner.arithmetic.dtype if runner.input_dtype is None else runner.input_dtype
    return x.to(runner.arithmetic.device, dtype), y.to(runner.arithmetic.device)


def _side_by_side(batches: Sequence[Batch]) -> Batch:
    """K clients' batches, the first the longest, as x [B, K, ...], y [B, K]; missing labels are IGNORED."""
    width = len(batches[0][1])
    padded = [_padded(b, width) for b in batches]
    xs = [x for x, _ in padded]
    # torch.func's GroupNorm does not support channels last, which `stack` would keep.
    contiguous = xs[0].new_empty((width, len(xs), *xs[0].shape[1:]))
    return torch.stack(xs, 1, out=contiguous), torch.stack([y for _, y in padded], 1)


def _padded(batch: Batch, width: int) -> Batch:
    x, y = batch
    missing = width - len(y)
    if not missing:
        return batch
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]), torch.cat(
        [y, y.new_full((missing,), IGNORED)]
    )
