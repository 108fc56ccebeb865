"""A network with K clients' weights: losses and gradients of all clients, by the faster of two methods."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet, Statistics, placed
from ssfl.engine.executors.batched.layers import Stacked, native_stacked_layers
from ssfl.engine.executors.batched.static_steps import IGNORED

Autocast = Callable[[], contextlib.AbstractContextManager[None]]

_REFUSALS = (TypeError, AttributeError, NotImplementedError)
"""Errors of a network that uses an operation that `Stacked` does not support."""


@final
class BlockNet:
    """A module under K clients' weights; the caller sets its train or eval mode.

    autocast: the context in which networks run. native: use `ssfl.native` for the GroupNorms of the faster method.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        autocast: Autocast = contextlib.nullcontext,
        native: bool = False,
    ) -> None:
        self.module = module
        self.native = native
        self.layout = layout
        self._autocast = autocast
        self.unused: list[slice] = []
        """Coordinates of the parameters on which the last losses do not depend, if that is known."""
        self._refused: set[tuple[bool, int, tuple[int, ...]]] = set()

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs [K, B, classes] under theta [K, P] of x [B, K, ...]."""
        return self._logits(self._weights(theta) | self._statistics(theta), x)

    def losses_and_gradient(
        self, theta: Tensor, batch: Batch, autocast: Autocast | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies [K] of x [B, K, ...], y [B, K] at theta [K, P], and their gradients [K, T].

        Labels IGNORED do not count. Running statistics are read; if the mode updates them, only copies are updated.
        autocast: the context in which the network runs; None: that of this object.
        """
        leaves = {name: t.detach().requires_grad_() for name, t in self._weights(theta).items()}
        logits = self._logits(leaves | self._statistics(theta), batch[0], autocast)
        losses = client_losses(logits, batch[1])
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        self.unused = [self.layout.slice_of(number) for number, g in enumerate(found) if g is None]
        given = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves.values(), found, strict=True)]
        return losses.detach(), torch.cat([g.reshape(len(g), -1) for g in given], dim=1)

    def objective_and_gradient(
        self, task: ClientTask, theta: Tensor, work: Work, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The same for a method's own objective, with vmap; updates the running statistics in theta [K, P]."""
        size, self.unused = self.layout.trained_size, []
        leaf = theta[:, :size].detach().requires_grad_()
        net, statistics = FlatNet(self.module, self.layout), self._statistics(theta)

        def loss_of(t: Tensor, w: Work, x: Tensor, y: Tensor, own: Statistics) -> Tensor:
            return task.loss(net, t, w, (x, y), own)

        with self._autocast(), _quiet():
            losses = vmap(loss_of, in_dims=(0, 0, 1, 1, 0))(leaf, work, *batch, statistics)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if statistics:
            theta[:, size:] = torch.cat([s.reshape(len(s), -1) for s in statistics.values()], dim=1)
        return losses.detach(), gradient

    def _weights(self, theta: Tensor) -> dict[str, Tensor]:
        return self.layout.views(theta[:, : self.layout.trained_size])

    def _statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Contiguous copies, because BatchNorm under vmap does not update a strided view."""
        views = self.layout.statistics(theta[:, self.layout.trained_size :])
        return {name: s.clone(memory_format=torch.contiguous_format) for name, s in views.items()}

    def _logits(self, tensors: Mapping[str, Tensor], x: Tensor, autocast: Autocast | None = None) -> Tensor:
        def alone(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
            with placed(self.module, own):
                return self.module(inputs)

        with (autocast or self._autocast)():
            out = self._stacked_unless_refused(tensors, x)
            if out is None:
                with _quiet():
                    out = vmap(alone, in_dims=(0, 1))(dict(tensors), x)
        return out.to(x.dtype) if x.is_floating_point() else out

    def stacks(self, x: Tensor) -> bool:
        """Whether inputs of this shape use `Stacked` in the module's current mode; True if not tried yet."""
        return self._may_stack(x) and self._form(x) not in self._refused

    def _stacked_unless_refused(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
        """None if the network uses an unsupported operation. That depends on mode and shapes, not on values."""
        if not self.stacks(x):
            return None
        try:
            return self._stacked(tensors, x)
        except _REFUSALS:
            self._refused.add(self._form(x))
            return None

    def _may_stack(self, x: Tensor) -> bool:
        return self.layout.size == self.layout.trained_size and x.device.type == "cpu"

    def _form(self, x: Tensor) -> tuple[bool, int, tuple[int, ...]]:
        return self.module.training, len(x), tuple(x.shape[2:])

    def _stacked(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        native = native_stacked_layers(self.module, self.native)
        with placed(self.module, {n: Stacked(t, len(t)) for n, t in tensors.items()}), native:
            out = self.module(Stacked.of_inputs(x))
        if not isinstance(out, Stacked) or out.images or out.dim() != 2:
            raise TypeError("the network's output is not one row of logits per example")
        return out.tensor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch.func's warning that it computes an operation client by client; the results are the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def client_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropies [K] of logits [K, B, classes] over the labels [B, K] that are not IGNORED."""
    wanted = labels.t()
    losses = cross_entropy(logits.flatten(0, 1), wanted.reshape(-1), reduction="none", ignore_index=IGNORED)
    return losses.view(wanted.shape).sum(1) / (wanted != IGNORED).sum(1)
