"""Whether a network can train K clients at once: known for the usual layers, found by a trial for others."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import THETA, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import FlatNet, trained_gradient
from ssfl.engine.compute.example_rules import (
    ExampleRules,
    couples_examples,
    draws_in_training,
    is_ordinary,
    made_up,
)
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.task_trial import loss_gradient, made_up_batch, prepared
from ssfl.errors import UserError

CLIENTS = 2
"""Clients in a trial."""
TOLERANCE = 1e-3
"""Largest relative difference between a trial's gradients in a block and those of clients computed one by one."""
_INSTEAD = "use engine.executor=sequential or processes"


class UnbatchableError(UserError):
    """A network that cannot train K clients at once; the message has the reason and an alternative."""


@final
@dataclass(frozen=True)
class Coupling:
    """Whether an example's output depends on the others of its minibatch: such minibatches are not padded."""

    training: bool
    evaluation: bool

    @staticmethod
    def of(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Coupling:
        """The coupling of a network that `check_batchable` accepts."""
        if Layout.of(module).whole or _has_statistics(module):
            return Coupling(
                True, not is_ordinary(module) and couples_examples(module, input_shape, False, dtype)
            )
        return Coupling(
            couples_examples(module, input_shape, True, dtype),
            couples_examples(module, input_shape, False, dtype),
        )


def _has_statistics(module: nn.Module) -> bool:
    layout = Layout.of(module)
    return layout.trained_size < layout.size


def check_batchable(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Raises UnbatchableError for a network that draws random numbers (they would differ from those of the sequential
    executor), has integer state, or gives different results for several clients at once.

    dtype: type of the inputs if they are not floats.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise _refused(f"layer {name or type(part).__name__} draws at random in training")
    if is_ordinary(module):
        return
    layout = Layout.of(module)
    if layout.whole:
        raise _refused(f"{layout.whole[0]} is an integer, and a block of clients shares one copy of it")
    with _errors_refused():
        if draws_in_training(module, input_shape, dtype):
            raise _refused("a layer of this network draws at random in training")
        _try_block(copy.deepcopy(module), layout, input_shape, dtype)


@contextlib.contextmanager
def _errors_refused() -> Iterator[None]:
    """Turn any error of torch.func or of the network's code into an UnbatchableError."""
    try:
        yield
    except UnbatchableError:
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise _refused(f"this network does not compute for several clients at once ({words})") from error


def _refused(why: str) -> UnbatchableError:
    return UnbatchableError(f"engine.executor=batched: {why}; {_INSTEAD}")


def check_lone_examples(
    rules: ExampleRules, examples: Iterable[int], tasks: Mapping[str, ClientTask]
) -> None:
    """Raises UnbatchableError if a client has a minibatch of one example and the network needs two.

    examples: numbers of training examples of all clients.
    """
    if rules.two_in_evaluation:
        raise _refused("this network needs two examples at once in evaluation")
    sizes = {task.fit.batch_size for task in tasks.values() if task.fit is not None}
    if rules.two_in_training and any(count % size == 1 for count in examples for size in sizes):
        raise _refused("a client's last minibatch has one example, and a layer of this network needs two")


def check_losses(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype | None,
    tasks: Mapping[str, ClientTask],
    works: Mapping[str, Work],
) -> None:
    """Raises UnbatchableError if a task's own loss fails or differs for several clients at once.

    Networks of the usual layers are not tried. works: one client's tensors by phase, from `task_trial.first_works`.
    """
    if is_ordinary(module):
        return
    for phase, work in works.items():
        task = tasks[phase]
        if task.has_own_loss:
            with _errors_refused():
                _try_loss(module, input_shape, dtype, task, work)


# ── the trial ────────────────────────────────────────────────────────────────────────────────────────────────────
def _try_block(
    module: nn.Module, layout: Layout, input_shape: tuple[int, ...], dtype: torch.dtype | None
) -> None:
    """Compare gradients in training and evaluation mode, and outputs, of two clients at once with each alone."""
    start = layout.flatten(module)
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(0)).to(start)
    theta = torch.stack([start, start + 0.01 * noise * (torch.arange(len(start)) < layout.trained_size)])
    x = torch.stack([made_up(module, input_shape, 4, dtype, seed) for seed in range(CLIENTS)], 1)
    with torch.no_grad():
        classes = module.eval()(x[:, 0].clone()).shape[1]
    y = (torch.arange(4)[:, None] + torch.arange(CLIENTS)).remainder(classes)
    together, alone = BlockNet(module, layout), FlatNet(module, layout)
    for training in (True, False):  # the second: a saliency
        module.train(training)
        batches = [(x[:, k].clone(), y[:, k]) for k in range(CLIENTS)]
        expected = torch.stack([trained_gradient(alone, t, b) for t, b in zip(theta, batches, strict=True)])
        _check_close(_gradient(together, theta.clone(), (x.clone(), y)), expected, "training")
    module.eval()
    with torch.inference_mode():
        logits = together.logits(theta, x.clone())
        _check_close(
            logits,
            torch.stack([alone.logits(theta[k], x[:, k].clone()) for k in range(CLIENTS)]),
            "evaluation",
        )


def _try_loss(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype | None,
    task: ClientTask,
    work: Work,
) -> None:
    """Compare a training gradient of the task's loss for two clients at once with each alone."""
    layout, trial = Layout.of(module), prepared(task, module).train()
    batches = [made_up_batch(module, input_shape, dtype, seed) for seed in range(CLIENTS)]
    alone = torch.stack([loss_gradient(FlatNet(trial, layout), task, work, batch) for batch in batches])
    stack = {name: torch.stack([tensor] * CLIENTS) for name, tensor in work.items()}
    hooks = {name: tensor for name, tensor in stack.items() if name != THETA}
    batch = torch.stack([x for x, _ in batches], 1), torch.stack([y for _, y in batches], 1)
    _, together = BlockNet(trial, layout).objective_and_gradient(task, stack[THETA], hooks, batch)
    _check_close(together, alone, "training")


def _gradient(net: BlockNet, theta: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    if net.layout.size == net.layout.trained_size or not net.module.training:
        return net.losses_and_gradient(theta, batch)[1]
    return net.objective_and_gradient(_PLAIN, theta, {}, batch)[1]


def _check_close(found: Tensor, expected: Tensor, when: str) -> None:
    far = float((found - expected).norm())
    if not far <= TOLERANCE * float(expected.norm()) + 1e-6:
        raise _refused(f"this network's results in {when} differ when several clients compute at once")


def _nothing(*_: object) -> object:
    raise AssertionError("a trial receives and sends nothing")


_PLAIN = ClientTask(_nothing, _nothing)  # type: ignore[arg-type]
"""A task with the plain cross-entropy loss."""
