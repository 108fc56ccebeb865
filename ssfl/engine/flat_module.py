"""A module whose parameters, buffers and gradients are views of flat vectors: loading a model is one copy."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ssfl.core import pages
from ssfl.core.layout import Layout
from ssfl.core.net import Statistics

MOVED_BYTES = 1 << 20
"""Gradients from this size on are moved as soon as they are there: of those of a large network one exists at a time."""


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
        theta = layout.flatten(module)
        self.theta = pages.empty_apart(theta).copy_(theta)
        self.gradient = pages.empty_apart(self.trained).zero_()
        self._set = self._given = False
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
        """Point every parameter and buffer into theta, and say where gradients go."""
        self._point_to_theta()
        gradients = self.layout.views(self.gradient)
        self._parameters = list(self.module.parameters())
        self._gradients = [gradients[name] for name, _ in self.module.named_parameters()]
        self._moved: set[int] = set()
        for number, (parameter, view) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            if view.nbytes >= MOVED_BYTES:
                move = partial(_move, view, self._moved, number)
                handle = parameter.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
                weakref.finalize(self, handle.remove)  # the module may outlive this view of it
            parameter.grad = None

    def _point_to_theta(self) -> None:
        weights = self.layout.views(self.trained)
        for name, parameter in self.module.named_parameters():
            parameter.data = weights[name]
        for name, buffer in self.statistics.items():
            path, _, leaf = name.rpartition(".")
            self.module.get_submodule(path)._buffers[leaf] = buffer

    def load(self, theta: Tensor) -> None:
        """Copy weights and statistics [P] in."""
        if self._given:
            self.theta, self._given = pages.empty_apart(theta), False
            self._point_to_theta()
        self.theta.copy_(theta)

    def result(self) -> Tensor:
        """The weights and statistics [P], no longer changed by this module; `load` before it computes again.

        A small vector is copied; a large one is given away, so that there is no second one beside it.
        """
        if self.theta.nbytes < pages.LARGE_BYTES or self.theta.device.type != "cpu":
            return self.theta.clone()
        self._given = True
        return self.theta

    def take_gradient(self) -> Tensor:
        """Move what a backward pass left in the parameters to `gradient [T]`, and return that.

        Autograd hands over the gradients that it made, where there are none to add to: one copy instead of zeros, a
        sum and a copy.
        """
        views, given = [], []
        for number, (view, parameter) in enumerate(zip(self._gradients, self._parameters, strict=True)):
            if parameter.grad is not None:
                views.append(view)
                given.append(parameter.grad)
                parameter.grad = None
            elif number not in self._moved:  # the loss does not depend on it
                view.zero_()
        if views:
            torch._foreach_copy_(views, given)
        self._moved.clear()
        return self.gradient


def _move(view: Tensor, moved: set[int], number: int, parameter: Tensor) -> None:
    """What autograd calls when a parameter's gradient is complete."""
    assert parameter.grad is not None
    view.copy_(parameter.grad)
    parameter.grad = None
    moved.add(number)
