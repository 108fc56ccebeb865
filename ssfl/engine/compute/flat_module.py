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
from ssfl.engine.compute.module_buffers import ModuleBuffers

MOVED_BYTES = 1 << 20
"""Gradients of at least this size are moved as soon as they are computed, so that only one exists at a time."""


class GradientPlace:
    """A parameter's view of the flat gradient, in which a kernel may write its gradient, so that it is not copied.

    It is given once in a backward pass: of a layer that is used twice, autograd adds the gradients.
    """

    def __init__(self, view: Tensor) -> None:
        self._view = view
        self.given = False

    def __call__(self) -> Tensor | None:
        """The memory; None if it has been given in this pass.

        A new tensor each time: autograd keeps a gradient without a copy only if nothing else refers to it.
        """
        if self.given:
            return None
        self.given = True
        return self._view.view_as(self._view)


class FlatModule:
    """`theta [P]` is the module's memory: writing theta changes the module's weights.

    `gradient [T]` is collected by `take_gradient` after a backward pass, so that the optimiser works on one vector
    instead of one tensor per parameter.
    """

    def __init__(self, module: nn.Module, layout: Layout, compiled: bool = False) -> None:
        """compiled: `forward` uses torch.compile; it is compiled at the first call, which is slow."""
        self.module = module
        self.forward: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module
        self.layout = layout
        theta = layout.flatten(module)
        self.theta = pages.empty_apart(theta).copy_(theta)
        self.gradient = pages.empty_apart(self.trained).zero_()
        self.unused: list[slice] = []
        """Coordinates of the parameters on which the loss of the last `take_gradient` does not depend."""
        self._set = self._given = False
        self._buffers = ModuleBuffers(module, layout)
        self.bind()

    def set_training(self, training: bool) -> None:
        """Set train or eval mode; visits the layers only if the mode changes."""
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
        """Make every parameter and buffer a view of theta, and register where gradients go.

        `places`: for kernels that write gradients of parameters themselves.
        """
        self._point_to_theta()
        gradients = self.layout.views(self.gradient)
        own = dict(self.module.named_parameters())
        self._parameters = [own[name] for name in gradients]
        self._gradients = list(gradients.values())
        places = map(GradientPlace, self._gradients)
        self.places: dict[Tensor, GradientPlace] = dict(zip(self._parameters, places, strict=True))
        self._moved: set[int] = set()
        for number, (parameter, view) in enumerate(zip(self._parameters, self._gradients, strict=True)):
            if view.nbytes >= MOVED_BYTES:
                move = partial(_move, view, self._moved, number)
                handle = parameter.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
                weakref.finalize(self, handle.remove)  # the module may exist longer than this object
            parameter.grad = None

    def _point_to_theta(self) -> None:
        own = dict(self.module.named_parameters())
        for name, weight in self.layout.views(self.trained).items():
            own[name].data = weight
        self._buffers.bind(self.theta[self.layout.trained_size :])

    def load(self, theta: Tensor) -> None:
        """Copy weights and statistics [P] into theta; constant buffers get their initial values."""
        if self._given:
            self.theta, self._given = pages.empty_apart(theta), False
            self._point_to_theta()
        self.theta.copy_(theta)
        self.unused = []
        self._drop_gradients()
        self._buffers.begin()

    def _drop_gradients(self) -> None:
        """Forget gradients that a failed backward pass left behind; autograd would add to them."""
        for parameter in self._parameters:
            parameter.grad = None
        self._forget_moves()

    def _forget_moves(self) -> None:
        self._moved.clear()
        for place in self.places.values():
            place.given = False

    def result(self) -> Tensor:
        """The weights and statistics [P], which this module no longer changes; call `load` before the next computation.

        A small vector is copied; a large one is returned itself, so that no second one exists.
        """
        self._buffers.collect()
        if self.theta.nbytes < pages.LARGE_BYTES or self.theta.device.type != "cpu":
            return self.theta.clone()
        self._given = True
        return self.theta

    def take_gradient(self) -> Tensor:
        """Move the parameters' gradients after a backward pass to `gradient [T]`, and return that.

        If parameters have no gradient before the pass, autograd assigns the new one: one copy, instead of zeros, a sum
        and a copy.
        """
        views, given = [], []
        self.unused = []
        for number, (view, parameter) in enumerate(zip(self._gradients, self._parameters, strict=True)):
            if parameter.grad is not None:
                if not _is_at(view, parameter.grad):
                    views.append(view)
                    given.append(parameter.grad)
                parameter.grad = None
            elif number not in self._moved:  # the loss does not depend on it
                view.zero_()
                self.unused.append(self.layout.slice_of(number))
        if views:
            torch._foreach_copy_(views, given)
        self._forget_moves()
        return self.gradient


def _move(view: Tensor, moved: set[int], number: int, parameter: Tensor) -> None:
    """Called by autograd when a parameter's gradient is complete."""
    assert parameter.grad is not None
    if not _is_at(view, parameter.grad):
        view.copy_(parameter.grad)
    parameter.grad = None
    moved.add(number)


def _is_at(view: Tensor, gradient: Tensor) -> bool:
    """Whether a gradient was computed in its `GradientPlace`."""
    return gradient.data_ptr() == view.data_ptr()
