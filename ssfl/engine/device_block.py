"""A block of K clients trained with static shapes, so that a CUDA graph can capture one step and replay it.

Every step has the same tensors: weights [K, T], a batch [K, B, ...], how many examples of it count [K], a learning
rate. Partial batches are padded with ignored labels; a client that has finished its epoch takes part with nothing
that counts and stays as it was. On a CPU the same step is called plainly, which is how it is tested.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.func import vmap

from ssfl.algorithms.base import ClientContext, ClientTask, Work
from ssfl.core.net import FlatNet
from ssfl.core.optim import FitSpec, clip_coefficient
from ssfl.engine.local import ClientRunner

IGNORED = -100
"""cross_entropy's own ignore_index: the label of padding."""
WARM_UP_STEPS = 3
"""Calls before a capture: libraries choose algorithms and reserve memory in the first ones."""
BLOCKS_KEPT = 2
"""Captured blocks that keep their memory: the usual cohort's, and the smaller last one's."""


@final
class StepGraph:
    """A step without arguments over tensors that never move: captured and replayed on CUDA, called elsewhere."""

    def __init__(self, step: Callable[[], None], device: torch.device, capture: bool = True) -> None:
        self._step = step
        self._replay: Callable[[], None] = step
        self._capture = capture and device.type == "cuda"

    def prepare(self) -> None:
        """Warm up and capture; the caller sees to it that the step changes nothing meanwhile."""
        if not self._capture:
            self._step()
            return
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            print(
                f"ssfl: no CUDA graph of this network's step ({error}); steps are launched", file=sys.stderr
            )
            return
        self._replay = graph.replay

    def __call__(self) -> None:
        """One step."""
        self._replay()


@dataclass(frozen=True)
class BlockEpoch:
    """One epoch of K clients in S steps: x [K, S, B, ...], y [K, S, B], examples that count [S, K], on the device."""

    x: Tensor
    y: Tensor
    counts: Tensor

    @property
    def steps(self) -> int:
        """S."""
        return len(self.counts)


def block_epoch(
    runner: ClientRunner, contexts: Sequence[ClientContext], epoch: int, batch_size: int
) -> BlockEpoch:
    """Every client's epoch drawn, gathered and normalised at once, then cut into steps of full width."""
    parts = [next(runner.train_batches(c, epoch, max(c.examples, 1))) for c in contexts]
    steps = max(-(-c.examples // batch_size) for c in contexts)
    x0, y0 = parts[0]
    x = x0.new_zeros(len(parts), steps * batch_size, *x0.shape[1:])
    y = y0.new_full((len(parts), steps * batch_size), IGNORED)
    for k, (own_x, own_y) in enumerate(parts):
        x[k, : len(own_y)] = own_x
        y[k, : len(own_y)] = own_y
        # A batch of nothing but ignored labels has no mean: what does not count needs some label all the same.
        y[k, -(-len(own_y) // batch_size) * batch_size :] = 0
    examples = torch.tensor([c.examples for c in contexts])
    counts = (examples - torch.arange(steps)[:, None] * batch_size).clamp(0, batch_size).to(x.device)
    cut = (len(parts), steps, batch_size)
    return BlockEpoch(x.view(*cut, *x0.shape[1:]), y.view(cut), counts)


@final
class StaticBlock:
    """The tensors of one step and the step itself."""

    def __init__(
        self, runner: ClientRunner, task: ClientTask, spec: FitSpec, stack: Work, shape: tuple[int, ...]
    ) -> None:
        size = runner.layout.trained_size
        self._arithmetic = runner.arithmetic
        self._task, self._spec = task, spec
        self._net = FlatNet(runner.flat(task).module, runner.layout)
        self.theta = stack["theta"][:, :size].clone()
        self.work = {name: t.clone() for name, t in stack.items() if name != "theta"}
        self.velocity = torch.zeros_like(self.theta) if spec.momentum else None
        clients, device = len(self.theta), self.theta.device
        # Contiguous whatever the arithmetic says: torch.func's GroupNorm takes no other memory format.
        self.x = self.theta.new_zeros(clients, spec.batch_size, *shape)
        self.y = torch.zeros(clients, spec.batch_size, dtype=torch.int64, device=device)
        self.counts = torch.zeros(clients, dtype=torch.int64, device=device)
        self.lr = torch.zeros((), dtype=self.theta.dtype, device=device)
        self.loss_sums = torch.zeros(clients, dtype=torch.float64, device=device)

    def load(self, stack: Work) -> None:
        """Begin a round: weights and what the hooks need."""
        self.theta.copy_(stack["theta"][:, : self.theta.shape[1]])
        for name, tensor in self.work.items():
            tensor.copy_(stack[name])
        if self.velocity is not None:
            self.velocity.zero_()

    def step(self) -> None:
        """gradient -> transform -> clip -> SGD for the clients whose count is not 0; nothing waits for the host."""
        leaf = self.theta.detach().requires_grad_()

        def loss_of(theta: Tensor, work: Work, x: Tensor, y: Tensor) -> Tensor:
            return self._task.objective(self._net, theta, work, (x, y), {})

        with self._arithmetic.autocast():
            losses = vmap(loss_of)(leaf, self.work, self.x, self.y)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        with torch.no_grad():
            active = self.counts > 0
            gradient = self._task.transform_gradient(gradient, self.theta, self.work)
            masked_sgd_step_(self.theta, gradient, self.velocity, self._spec, self.lr, active[:, None])
            self.loss_sums += losses.detach().double() * self.counts


def masked_sgd_step_(
    theta: Tensor, gradient: Tensor, velocity: Tensor | None, spec: FitSpec, lr: Tensor, active: Tensor
) -> None:
    """`core.optim.sgd_step_` for the rows of theta [K, T] with active [K, 1]; the others keep weights and velocity.

    The learning rate is a tensor, because a captured step would keep a number for ever.
    """
    rate = lr * active
    if spec.clip_norm is not None:
        gradient.mul_(clip_coefficient(gradient, spec.clip_norm))
    if velocity is None:
        if spec.weight_decay:
            theta.mul_(1.0 - rate * spec.weight_decay)
        theta.addcmul_(gradient, rate, value=-1.0)
        return
    if spec.weight_decay:
        gradient.add_(theta, alpha=spec.weight_decay)
    share = active.to(theta.dtype)
    velocity.mul_(1.0 - (1.0 - spec.momentum) * share).addcmul_(gradient, share)
    theta.addcmul_(velocity, rate, value=-1.0)


def static_task(task: ClientTask, coupled: bool) -> bool:
    """Whether a task's step may run for clients that have finished: nothing in it but theta changes."""
    projects = type(task).project_weights is not ClientTask.project_weights
    return not (coupled or projects or task.updates)


@final
class StaticTrainer:
    """Trains blocks through captured steps; a block of the same task and width is captured once."""

    def __init__(self, runner: ClientRunner, capture: bool = True) -> None:
        self._runner = runner
        self._capture = capture
        self._blocks: dict[tuple[int, int], tuple[StaticBlock, StepGraph]] = {}

    def fit(
        self, task: ClientTask, spec: FitSpec, stack: Work, contexts: Sequence[ClientContext]
    ) -> list[float]:
        """Train all clients of the block in stack["theta"] [K, P]; each one's mean loss over the last epoch."""
        block, graph = self._prepared(task, spec, stack)
        for epoch in range(spec.epochs):
            block.lr.fill_(spec.schedule(contexts[0].clock.round, epoch))
            block.loss_sums.zero_()
            data = block_epoch(self._runner, contexts, epoch, spec.batch_size)
            for step in range(data.steps):
                block.x.copy_(data.x[:, step])
                block.y.copy_(data.y[:, step])
                block.counts.copy_(data.counts[step])
                graph()
        stack["theta"][:, : block.theta.shape[1]] = block.theta
        sums = block.loss_sums.tolist()  # the one place that waits for the device
        return [s / max(c.examples, 1) for s, c in zip(sums, contexts, strict=True)]

    def _prepared(self, task: ClientTask, spec: FitSpec, stack: Work) -> tuple[StaticBlock, StepGraph]:
        runner = self._runner
        runner.flat(task).module.train()
        key = (id(task), len(stack["theta"]))
        if key not in self._blocks:
            while len(self._blocks) >= BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = StaticBlock(runner, task, spec, stack, runner.federation.input_shape)
            graph = StepGraph(block.step, block.theta.device, self._capture)
            graph.prepare()  # all counts are 0: the steps change nothing
            self._blocks[key] = (block, graph)
        self._blocks[key][0].load(stack)
        return self._blocks[key]
