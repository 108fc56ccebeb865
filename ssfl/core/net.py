"""A network as a function of one flat vector, for saliencies and re-parameterised objectives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] (float) and labels [B] (int64)."""


@dataclass(frozen=True)
class FlatNet:
    """`logits(theta, x)` of a module; its train or eval mode is set by who calls."""

    module: nn.Module
    layout: Layout

    def logits(self, theta: Tensor, x: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Outputs [B, classes] under `theta [P]` (or [T] with the statistics [P - T] apart).

        In train mode BatchNorm updates `statistics` in place; when they are part of theta a copy is updated
        and dropped, so that theta itself never changes.
        """
        layout = self.layout
        tensors = layout.views(theta[..., : layout.trained_size])
        if layout.trained_size < layout.size:
            tail = theta[..., layout.trained_size :].detach().clone() if statistics is None else statistics
            tensors |= layout.statistics(tail)
        return functional_call(self.module, tensors, (x,))

    def loss(self, theta: Tensor, batch: Batch, statistics: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the batch, a scalar."""
        return cross_entropy(self.logits(theta, batch[0], statistics), batch[1])


def trained_gradient(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """Gradient [T] of the batch's mean cross-entropy at `theta [P]`."""
    leaf = theta[: net.layout.trained_size].detach().clone().requires_grad_()
    tail = theta[net.layout.trained_size :].detach().clone()
    (out,) = torch.autograd.grad(net.loss(leaf, batch, tail), leaf)
    return out
