"""A module whose parameters, buffers and gradients are views of flat vectors: loading a model is one copy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.net import Statistics


class FlatModule:
    """`theta [P]` and `gradient [T]` are the module's own memory: write theta and the module has new weights.

    Backward accumulates into `gradient` through the parameters' `.grad` views, so a step allocates nothing and the
    optimiser works on one vector instead of one tensor per parameter.
    """

    def __init__(self, module: nn.Module, layout: Layout, compiled: bool = False) -> None:
        """compiled: `forward` goes through torch.compile; it is then fixed at the first call, which takes long."""
        self.module = module
        self.forward: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
        self.layout = layout
        self.theta = layout.flatten(module)
        self.gradient = self.theta.new_zeros(layout.trained_size)
        self.bind()

    @property
    def trained(self) -> Tensor:
        """theta[:T], a view."""
        return self.theta[: self.layout.trained_size]

    @property
    def statistics(self) -> Statistics:
        """theta[T:] by name, views: BatchNorm's running statistics."""
        return self.layout.statistics(self.theta[self.layout.trained_size :])

    def bind(self) -> None:
        """Point every parameter, gradient and buffer into the flat vectors."""
        weights = self.layout.views(self.trained)
        gradients = self.layout.views(self.gradient)
        for name, parameter in self.module.named_parameters():
            parameter.data = weights[name]
            parameter.grad = gradients[name]
        for name, buffer in self.statistics.items():
            path, _, leaf = name.rpartition(".")
            self.module.get_submodule(path)._buffers[leaf] = buffer

    def load(self, theta: Tensor) -> None:
        """Copy weights and statistics [P] in."""
        self.theta.copy_(theta)
