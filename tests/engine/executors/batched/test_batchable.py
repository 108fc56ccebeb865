"""A task's own loss is tried for several clients at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssfl.algorithms.base import THETA, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.executors.batched.batchable import UnbatchableError, check_batchable, check_losses

FIT = FitSpec(epochs=1, batch_size=4, schedule=ExponentialDecay(0.1, 1.0))


def unused(*_: object) -> object:
    raise AssertionError("a trial receives and sends nothing here")


class Own(nn.Module):
    """A layer that is not one of the usual ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def branching(net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None) -> Tensor:
    """Computes alone, but not under vmap: it branches on a value."""
    loss = net.loss(theta, batch, statistics)
    return loss if float(loss.detach()) > 0 else -loss


def smooth(net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None) -> Tensor:
    return net.loss(theta, batch, statistics) + theta.square().sum()


def test_a_loss_that_does_not_compute_in_blocks_is_refused() -> None:
    module = Own()
    work = {THETA: Layout.of(module).flatten(module)}
    task = ClientTask(unused, unused, fit=FIT)  # type: ignore[arg-type]
    check_batchable(module, (5,))
    check_losses(module, (5,), None, {"train": replace(task, objective=smooth)}, {"train": work})
    with pytest.raises(UnbatchableError, match="does not compute for several clients at once"):
        check_losses(module, (5,), None, {"train": replace(task, objective=branching)}, {"train": work})


def test_a_loss_that_differs_in_blocks_is_refused() -> None:
    """A loss that counts its calls: every client alone is another call, a block is one."""
    calls: list[int] = []

    def counting(
        net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None
    ) -> Tensor:
        calls.append(1)
        return net.loss(theta, batch, statistics) * len(calls)

    module = Own()
    work = {THETA: torch.ones(18)}
    task = ClientTask(unused, unused, fit=FIT, objective=counting)  # type: ignore[arg-type]
    with pytest.raises(UnbatchableError, match="differ when several clients compute at once"):
        check_losses(module, (5,), None, {"train": task}, {"train": work})
