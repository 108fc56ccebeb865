"""A network as a function of one flat vector, for saliencies and re-parameterised objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] (float) and labels [B] (int64)."""

Statistics = Mapping[str, Tensor]
"""BatchNorm's running statistics by name; updated in place in train mode."""


@dataclass(frozen=True)
class FlatNet:
    """`logits(theta, x)` of a module; its train or eval mode is set by who calls."""

    module: nn.Module
    layout: Layout

    def statistics(self, theta: Tensor) -> Statistics:
        """Copies of the running statistics in `theta [P]`, which a forward pass may update."""
        tail = theta[..., self.layout.trained_size :].detach().clone()
        return self.layout.statistics(tail)

    def logits(self, theta: Tensor, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Outputs [B, classes] under `theta [P]`, or trained coordinates [T] with the statistics apart.

        In train mode BatchNorm updates `statistics` in place; when they are part of theta a copy is updated
        and dropped, so that theta itself never changes.
        """
        tensors = self.layout.views(theta[..., : self.layout.trained_size])
        if self.layout.trained_size < self.layout.size:
            tensors |= self.statistics(theta) if statistics is None else statistics
        return functional_call(self.module, tensors, (x,))

    def loss(self, theta: Tensor, batch: Batch, statistics: Statistics | None = None) -> Tensor:
        """Mean cross-entropy of the batch, a scalar."""
        return cross_entropy(self.logits(theta, batch[0], statistics), batch[1])


def trained_gradient(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """Gradient [T] of the batch's mean cross-entropy at `theta [P]`."""
    leaf = theta[: net.layout.trained_size].detach().clone().requires_grad_()
    (out,) = torch.autograd.grad(net.loss(leaf, batch, net.statistics(theta)), leaf)
    return out
