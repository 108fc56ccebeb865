"""A network with K clients' weights: losses and gradients of all clients, by the faster of two ways."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.engine.block_layers import Stacked, native_stacked_layers
from ssfl.engine.device_block import IGNORED

Autocast = Callable[[], contextlib.AbstractContextManager[None]]

_REFUSALS = (TypeError, AttributeError, NotImplementedError)
"""What a network may raise that does with a `Stacked` what one cannot do."""


@final
class BlockNet:
    """A module under K clients' weights; its train or eval mode is set by who calls.

    autocast: the context in which networks run. native: GroupNorms of the faster way through `ssfl.native`.
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
        self._stacks: bool | None = None
        self._slots = _slots(module)

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs [K, B, classes] under theta [K, P] of x [B, K, ...]."""
        return self._logits(self._weights(theta) | self._statistics(theta), x)

    def losses_and_gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies [K] of x [B, K, ...], y [B, K] at theta [K, P], and their gradients [K, T].

        Labels IGNORED do not count. Running statistics are read, and where the mode updates them, only copies are.
        """
        leaves = {name: t.detach().requires_grad_() for name, t in self._weights(theta).items()}
        logits = self._logits(leaves | self._statistics(theta), batch[0])
        losses = client_losses(logits, batch[1])
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        return losses.detach(), torch.cat([g.flatten(1) for g in found], dim=1)

    def objective_and_gradient(
        self, task: ClientTask, theta: Tensor, work: Work, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The same of a method's own objective, through vmap; updates the running statistics in theta [K, P]."""
        size = self.layout.trained_size
        leaf = theta[:, :size].detach().requires_grad_()
        net, statistics = FlatNet(self.module, self.layout), self._statistics(theta)

        def loss_of(t: Tensor, w: Work, x: Tensor, y: Tensor, own: Statistics) -> Tensor:
            return task.objective(net, t, w, (x, y), own)

        with self._autocast():
            losses = vmap(loss_of, in_dims=(0, 0, 1, 1, 0))(leaf, work, *batch, statistics)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if statistics:
            theta[:, size:] = torch.cat([s.flatten(1) for s in statistics.values()], dim=1)
        return losses.detach(), gradient

    def _weights(self, theta: Tensor) -> dict[str, Tensor]:
        return self.layout.views(theta[:, : self.layout.trained_size])

    def _statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Contiguous copies: BatchNorm under vmap updates nothing in a strided view."""
        views = self.layout.statistics(theta[:, self.layout.trained_size :])
        return {name: s.clone(memory_format=torch.contiguous_format) for name, s in views.items()}

    def _logits(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self._stacks is None:
            self._stacks = self._tried(tensors, x)

        def alone(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(self.module, own, (inputs,))

        with self._autocast():
            if self._stacks:
                out = self._stacked(tensors, x)
            else:
                out = vmap(alone, in_dims=(0, 1))(dict(tensors), x)
        return out.to(x.dtype)

    def _tried(self, tensors: Mapping[str, Tensor], x: Tensor) -> bool:
        """Whether the network computes with `Stacked`: a forward pass decides, once."""
        if self.layout.size > self.layout.trained_size or x.device.type != "cpu":
            return False
        try:
            with torch.no_grad():
                self._stacked(tensors, x[:1])
        except _REFUSALS:
            return False
        return True

    def _stacked(self, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        native = native_stacked_layers(self.module, self.native)
        with _placed(self._slots, {n: Stacked(t, len(t)) for n, t in tensors.items()}), native:
            out = self.module(Stacked.of_inputs(x))
        if not isinstance(out, Stacked) or out.images or out.dim() != 2:
            raise TypeError("the network's output is not one row of logits an example")
        return out.tensor


Slots = tuple[tuple[dict[str, Any], str, str], ...]
"""Where a module keeps each parameter: (the layer's own dictionary, name there, name in the layout)."""


def _slots(module: nn.Module) -> Slots:
    names = {id(p): name for name, p in module.named_parameters()}
    return tuple(
        (layer._parameters, own, names[id(p)])
        for layer in module.modules()
        for own, p in layer._parameters.items()
        if p is not None
    )


@contextlib.contextmanager
def _placed(slots: Slots, values: Mapping[str, Any]) -> Iterator[None]:
    """Within: the module's parameters are `values`, which need not be tensors."""
    before = [holder[own] for holder, own, _ in slots]
    try:
        for holder, own, name in slots:
            holder[own] = values[name]
        yield
    finally:
        for (holder, own, _), parameter in zip(slots, before, strict=True):
            holder[own] = parameter


def client_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropies [K] of logits [K, B, classes] over the labels [B, K] that are not IGNORED."""
    wanted = labels.t()
    losses = cross_entropy(logits.flatten(0, 1), wanted.reshape(-1), reduction="none", ignore_index=IGNORED)
    return losses.view(wanted.shape).sum(1) / (wanted != IGNORED).sum(1)
