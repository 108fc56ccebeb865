"""One step of each task of a method, on copies of the network and random examples, before a run begins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import (
    THETA,
    Algorithm,
    ClientContext,
    ClientTask,
    Clock,
    Probe,
    ServerContext,
    Work,
)
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet
from ssfl.core.payloads import Payload
from ssfl.engine.compute.example_rules import EXAMPLES, is_ordinary, made_up
from ssfl.engine.executors.trial import UntrainableError, errors_in_one_line


@final
class TaskError(UntrainableError):
    """A task that fails on this network. probes: whether in its saliency. prepares: whether it replaces layers."""

    def __init__(self, message: str, probes: bool, prepares: bool) -> None:
        super().__init__(message)
        self.probes = probes
        self.prepares = prepares


def first_works(
    algorithm: Algorithm[Any], theta: Tensor, context: ServerContext, rounds: int
) -> Mapping[str, Work]:
    """Work tensors of the first client of the run's first exchange, by phase; empty if its messages come from peers.

    Tensors of later phases depend on replies, so the losses of those phases cannot be tried before the run.
    """
    plan = algorithm.configure_round(algorithm.initialize(theta, context), Clock(1, rounds), context)
    if plan is None or not plan.instructions:
        return {}
    first = plan.instructions[0]
    inbox = [message for message in first.inbox if isinstance(message, Payload)]
    if len(inbox) < len(first.inbox):
        return {}
    examples = context.example_counts[first.client]
    known = ClientContext(first.client, plan.clock, context.seed, context.layout, examples)
    work, _ = algorithm.tasks[plan.phase].receive(inbox, {}, known)
    return {plan.phase: work}


def needs_works(tasks: Mapping[str, ClientTask], module: nn.Module) -> bool:
    """Whether a task has its own loss, which should be tried on this network."""
    return not is_ordinary(module) and any(task.has_own_loss for task in tasks.values())


def check_tasks(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype | None,
    tasks: Mapping[str, ClientTask],
    works: Mapping[str, Work],
) -> None:
    """Raises TaskError if a task cannot prepare, train or score this network.

    Networks of the usual layers are prepared only. works: from `first_works`.
    """
    for phase, task in tasks.items():
        _check(phase, task, False, partial(prepared, task, module))
        if is_ordinary(module):
            continue
        batch = made_up_batch(module, input_shape, dtype)
        if task.fit is not None:
            _check(phase, task, False, partial(_train, module, task, works.get(phase), batch))
        if task.probe is not None:
            _check(phase, task, True, partial(_score, module, task, task.probe, batch))


def prepared(task: ClientTask, module: nn.Module) -> nn.Module:
    """A copy of the network with the layers that the task trains."""
    trial = copy.deepcopy(module)
    return trial if task.prepare is None else task.prepare(trial)


def made_up_batch(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None, seed: int = 0
) -> Batch:
    """EXAMPLES random examples, with labels that cycle through all classes."""
    x = made_up(module, input_shape, EXAMPLES, dtype, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        classes = copy.deepcopy(module).eval()(x.clone()).shape[1]
    return x, (torch.arange(EXAMPLES, device=x.device) + seed).remainder(classes)


def loss_gradient(net: FlatNet, task: ClientTask, work: Work, batch: Batch) -> Tensor:
    """Gradient [T] of the task's own loss at work[THETA] [P]; `work` does not change."""
    own = {name: tensor.clone() for name, tensor in work.items()}
    leaf = own[THETA][: net.layout.trained_size].detach().requires_grad_()
    hooks = {name: tensor for name, tensor in own.items() if name != THETA}
    loss = task.loss(net, leaf, hooks, (batch[0].clone(), batch[1]), net.statistics(own[THETA]))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def _check(phase: str, task: ClientTask, probes: bool, step: Callable[[], object]) -> None:
    try:
        with errors_in_one_line(), torch.random.fork_rng(devices=[]):
            step()
    except UntrainableError as error:
        cause = error.__cause__ or error
        words = " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(":")
        text = f"phase {phase} fails in a trial step on this network ({words[:300]})"
        raise TaskError(text, probes, task.prepare is not None) from error


def _train(module: nn.Module, task: ClientTask, work: Work | None, batch: Batch) -> None:
    """One training gradient, of the task's own loss if it has one that can be tried, else of the cross-entropy."""
    layout = Layout.of(module)
    net = FlatNet(prepared(task, module).train(), layout)
    if work is None or task.sees_theta:
        net.loss(layout.flatten(net.module).requires_grad_(), batch).backward()  # type: ignore[no-untyped-call]
    else:
        loss_gradient(net, task, work, batch)


def _score(module: nn.Module, task: ClientTask, probe: Probe, batch: Batch) -> None:
    layout = Layout.of(module)
    trial = prepared(task, module).train(probe.saliency.training_mode)
    probe.saliency.score(FlatNet(trial, layout), layout.flatten(trial), batch)
