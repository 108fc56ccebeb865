"""The gradient of a method's own loss on a flat network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientTask, Work
from ssfl.core.net import Batch, FlatNet
from ssfl.engine.compute.flat_module import FlatModule


def own_loss_gradient(
    task: ClientTask,
    flat: FlatModule,
    work: Work,
    batch: Batch,
    forward: AbstractContextManager[None] | None = None,
) -> Tensor:
    """Write the gradient [T] of the task's loss at `flat.trained` to `flat.gradient`; returns the loss, a scalar.

    The objective may update `work` in place; running statistics of `flat` are updated. forward: the context in which
    the loss is computed (autocast).
    """
    leaf = flat.trained.detach().requires_grad_()
    # Copies: changing theta's tail before the backward pass would change the leaf, which shares its memory.
    statistics = {name: statistic.clone() for name, statistic in flat.statistics.items()}
    with forward or nullcontext():
        loss = task.loss(FlatNet(flat.module, flat.layout), leaf, work, batch, statistics)
    (gradient,) = torch.autograd.grad(loss, leaf)
    flat.gradient.copy_(gradient)
    for name, statistic in flat.statistics.items():
        statistic.copy_(statistics[name])
    return loss.detach()
