"""The training step of a method with its own layers or loss, for the measurement of a step's time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import THETA, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import Batch
from ssfl.engine.client.own_loss import own_loss_gradient
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.task_trial import prepared


@final
@dataclass(frozen=True)
class OwnStep:
    """A task that trains other layers than the network's own, or another loss than the cross-entropy at theta."""

    task: ClientTask
    work: Work | None = None
    """One client's tensors; None if they are unknown before the run: the loss is then the cross-entropy at theta."""

    @staticmethod
    def exists(tasks: Iterable[ClientTask]) -> bool:
        """Whether there is such a task."""
        return any(map(_is_own, tasks))

    @staticmethod
    def of(tasks: Mapping[str, ClientTask], works: Mapping[str, Work]) -> OwnStep | None:
        """The first such task; None if all training is the cross-entropy of the network itself.

        works: from `task_trial.first_works`.
        """
        for phase, task in tasks.items():
            if _is_own(task):
                return OwnStep(task, works.get(phase))
        return None

    def prepared(self, module: nn.Module) -> nn.Module:
        """A copy of the network with the layers that the task trains."""
        return prepared(self.task, module)

    def alone(self, flat: FlatModule, batch: Batch) -> Callable[[], object]:
        """One client's gradient, computed as `ClientRunner` does."""
        if self.task.sees_theta:
            return plain_step(flat, batch)
        task, hooks = self._known_task(), self._hooks()
        return lambda: own_loss_gradient(task, flat, hooks, (batch[0].clone(), batch[1]))

    def together(self, net: BlockNet, theta: Tensor, batch: Batch) -> Callable[[], object]:
        """The gradients of K clients, computed as `BatchedExecutor` does. theta [K, P], batch [B, K, ...]."""
        if self.task.sees_theta:
            return plain_block_step(net, theta, batch)
        task = self._known_task()
        hooks = {name: torch.stack([t] * len(theta)) for name, t in self._hooks().items()}
        return lambda: net.objective_and_gradient(task, theta, hooks, (batch[0].clone(), batch[1]))

    def start(self, module: nn.Module, layout: Layout) -> Tensor:
        """The weights [P] at which the step is timed."""
        return layout.flatten(module) if self.work is None else self.work[THETA]

    def _known_task(self) -> ClientTask:
        return self.task if self.work else replace(self.task, objective=None, effective_weights=None)

    def _hooks(self) -> Work:
        """Copies, because the loss may update them in place."""
        return {name: tensor.clone() for name, tensor in (self.work or {}).items() if name != THETA}


def _is_own(task: ClientTask) -> bool:
    return task.has_own_loss or (task.fit is not None and task.prepare is not None)


def plain_step(flat: FlatModule, batch: Batch) -> Callable[[], object]:
    """One client's gradient of the network's cross-entropy."""

    def step() -> None:
        x = batch[0].clone()  # a network may change its input in place
        torch.autograd.backward(cross_entropy(flat.module(x), batch[1]))
        flat.take_gradient()

    return step


def plain_block_step(net: BlockNet, theta: Tensor, batch: Batch) -> Callable[[], object]:
    """The same for K clients. theta [K, P], batch [B, K, ...]."""
    return lambda: net.losses_and_gradient(theta, (batch[0].clone(), batch[1]))
