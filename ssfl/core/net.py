"""A network as a function of one flat vector, for saliencies and re-parameterised objectives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout

Batch = tuple[Tensor, Tensor]
"""Inputs [B, ...] (float) and labels [B] (int64)."""

Statistics = Mapping[str, Tensor]
"""BatchNorm's running statistics by name; updated in place in train mode."""


NO_TENSORS: Statistics = MappingProxyType({})


@contextlib.contextmanager
def placed(module: nn.Module, tensors: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Replace the named parameters and buffers of a module by `tensors` inside the block; all aliases are replaced.

    A name that is neither a parameter nor a buffer is a plain attribute of a layer. Yields a dict; after the block it
    contains the tensors that were in the module at the end of the block. (`torch.func.functional_call` does not
    restore a layer that occurs twice in a module.)
    """
    own = {
        id(t): name for name, t in (*module.named_parameters(), *module.named_buffers()) if name in tensors
    }
    slots: list[tuple[dict[str, Any], str, str, Any]] = [
        (holder, leaf, own[id(tensor)], tensor)
        for layer in module.modules()
        for holder in (layer._parameters, layer._buffers)
        for leaf, tensor in holder.items()
        if id(tensor) in own
    ]
    for name in tensors.keys() - own.values():
        prefix, _, leaf = name.rpartition(".")
        holder = vars(module.get_submodule(prefix))
        slots.append((holder, leaf, name, holder[leaf]))
    left: dict[str, Any] = dict(tensors)
    try:
        for holder, leaf, name, _ in slots:
            holder[leaf] = tensors[name]
        yield left
    finally:
        for holder, leaf, name, before in slots:
            if holder[leaf] is not tensors[name]:
                left[name] = holder[leaf]
            holder[leaf] = before


@dataclass(frozen=True)
class FlatNet:
    """A module as a function `logits(theta, x)`; the caller sets its train or eval mode."""

    module: nn.Module
    layout: Layout

    def statistics(self, theta: Tensor) -> Statistics:
        """Copies of the running statistics in `theta [P]`, which a forward pass may update."""
        tail = theta[..., self.layout.trained_size :].detach().clone()
        return self.layout.statistics(tail)

    def logits(
        self,
        theta: Tensor,
        x: Tensor,
        statistics: Statistics | None = None,
        attributes: Mapping[str, Tensor] = NO_TENSORS,
    ) -> Tensor:
        """Outputs [B, classes] at `theta [P]`, or at trained coordinates [T] with separate statistics.

        In train mode BatchNorm updates `statistics` in place; if they are part of theta, a copy is updated
        and discarded, so that theta never changes. attributes: tensors by the names of layers' attributes.
        """
        tensors = self.layout.views(theta[..., : self.layout.trained_size])
        own: Statistics = {}
        if self.layout.trained_size < self.layout.size:
            own = self.statistics(theta) if statistics is None else statistics
            tensors |= own
        with placed(self.module, tensors | dict(attributes)) as left:
            out: Tensor = self.module(x)
        for name, statistic in own.items():
            if left[name] is not statistic:  # forward assigned a new tensor to the buffer
                statistic.copy_(left[name].detach())
        return out

    def loss(self, theta: Tensor, batch: Batch, statistics: Statistics | None = None) -> Tensor:
        """Mean cross-entropy of the batch, a scalar."""
        return cross_entropy(self.logits(theta, batch[0], statistics), batch[1])


def trained_gradient(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """Gradient [T] of the batch's mean cross-entropy at `theta [P]`."""
    leaf = theta[: net.layout.trained_size].detach().clone().requires_grad_()
    (out,) = torch.autograd.grad(net.loss(leaf, batch, net.statistics(theta)), leaf)
    return out
