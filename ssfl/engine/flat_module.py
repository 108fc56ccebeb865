"""A module whose parameters, buffers and gradients are views of flat vectors: loading a model is one copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.net import Statistics


class FlatModule:
    """`theta [P]` is the module's own memory: write theta and the module has new weights.

    `gradient [T]` is what `take_gradient` collects after a backward pass, so that the optimiser works on one vector
    instead of one tensor per parameter.
    """

    def __init__(self, module: nn.Module, layout: Layout, compiled: bool = False) -> None:
        """compiled: `forward` goes through torch.compile; it is then fixed at the first call, which takes long."""
        self.module = module
        self.forward: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
        self.layout = layout
        self.theta = layout.flatten(module)
        self.gradient = self.theta.new_zeros(layout.trained_size)
        self._set = False
        self.bind()

    def set_training(self, training: bool) -> None:
        """Train or eval mode; a walk over all layers only where it changes something."""
        if not self._set or self.module.training != training:
            self.module.train(training)
            self._set = True

    @property
    def trained(self) -> Tensor:
        """theta[:T], a view."""
        return self.theta[: self.layout.trained_size]

    @property
    def statistics(self) -> Statistics:
        """theta[T:] by name, views: BatchNorm's running statistics."""
        return self.layout.statistics(self.theta[self.layout.trained_size :])

    def bind(self) -> None:
        """Point every parameter and buffer into theta."""
        weights = self.layout.views(self.trained)
        gradients = self.layout.views(self.gradient)
        self._parameters = list(self.module.parameters())
        self._gradients = [gradients[name] for name, _ in self.module.named_parameters()]
        for name, parameter in self.module.named_parameters():
            parameter.data = weights[name]
            parameter.grad = None
        for name, buffer in self.statistics.items():
            path, _, leaf = name.rpartition(".")
            self.module.get_submodule(path)._buffers[leaf] = buffer

    def load(self, theta: Tensor) -> None:
        """Copy weights and statistics [P] in."""
        self.theta.copy_(theta)

    def take_gradient(self) -> Tensor:
        """Move what a backward pass left in the parameters to `gradient [T]`, and return that.

        Autograd hands over the gradients that it made, where there are none to add to: one copy instead of zeros, a
        sum and a copy.
        """
        found = [p.grad for p in self._parameters]
        given = [g for g in found if g is not None]
        if len(given) == len(found):
            torch._foreach_copy_(self._gradients, given)
        else:  # a parameter that the loss does not depend on
            for view, g in zip(self._gradients, found, strict=True):
                view.zero_() if g is None else view.copy_(g)
        for parameter in self._parameters:
            parameter.grad = None
        return self.gradient
