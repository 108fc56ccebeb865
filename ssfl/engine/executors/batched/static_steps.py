"""A block of K clients trained with static shapes, so that a CUDA graph can capture one step and replay it.

Every step has the same tensors: weights [K, T], a batch [K, B, ...], how many examples of it count [K], a learning
rate. Partial batches are padded with ignored labels; a client that has finished its epoch takes part with a count of 0
and does not change. On a CPU the same step is called without a graph, which the tests use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.func import vmap

from ssfl.algorithms.base import ClientContext, ClientTask, TrainLoss, Work
from ssfl.core.net import FlatNet
from ssfl.core.optim import FitSpec, clip_coefficient
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.client.step import local_step_

IGNORED = -100
"""cross_entropy's default ignore_index: the label of padding."""
WARM_UP_STEPS = 3
"""Calls before a capture: in the first ones libraries choose algorithms and reserve memory."""
BLOCKS_KEPT = 2
"""Captured blocks that are kept: one for the usual block size, one for a smaller last block."""


@final
class StepGraph:
    """A step without arguments over tensors with fixed addresses: captured and replayed on CUDA, called elsewhere."""

    def __init__(self, step: Callable[[], None], device: torch.device, capture: bool = True) -> None:
        self._step = step
        self._replay: Callable[[], None] = step
        self._capture = capture and device.type == "cuda"

    def prepare(self) -> None:
        """Warm up and capture; the caller must ensure that the step changes nothing meanwhile."""
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
                f"ssfl: no CUDA graph of this network's step ({error}); steps run without one",
                file=sys.stderr,
            )
            return
        self._replay = graph.replay

    def __call__(self) -> None:
        """One step."""
        self._replay()


@dataclass(frozen=True)
class BlockEpoch:
    """One epoch of K clients in S steps: x [K, S, B, ...], y [K, S, B], numbers of examples [S, K], on the device."""

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
    """Draw, gather and normalise every client's epoch at once, then divide it into steps of all clients."""
    parts = [next(runner.train_batches(c, epoch, max(c.examples, 1))) for c in contexts]
    steps = max(-(-c.examples // batch_size) for c in contexts)
    x0, y0 = parts[0]
    x = x0.new_zeros(len(parts), steps * batch_size, *x0.shape[1:])
    y = y0.new_full((len(parts), steps * batch_size), IGNORED)
    for k, (own_x, own_y) in enumerate(parts):
        x[k, : len(own_y)] = own_x
        y[k, : len(own_y)] = own_y
        # A batch with only ignored labels has no mean: batches that do not count need a valid label.
        y[k, -(-len(own_y) // batch_size) * batch_size :] = 0
    examples = torch.tensor([c.examples for c in contexts])
    counts = (examples - torch.arange(steps)[:, None] * batch_size).clamp(0, batch_size).to(x.device)
    cut = (len(parts), steps, batch_size)
    return BlockEpoch(x.view(*cut, *x0.shape[1:]), y.view(cut), counts)


@final
class StaticBlock:
    """The tensors of one step, and the step."""

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
        # Contiguous in every memory format: torch.func's GroupNorm supports no other.
        dtype = self.theta.dtype if runner.input_dtype is None else runner.input_dtype
        self.x = torch.zeros(clients, spec.batch_size, *shape, dtype=dtype, device=device)
        self.y = torch.zeros(clients, spec.batch_size, dtype=torch.int64, device=device)
        self.counts = torch.zeros(clients, dtype=torch.int64, device=device)
        self.lr = torch.zeros((), dtype=self.theta.dtype, device=device)
        self.loss_sums = torch.zeros(clients, dtype=torch.float64, device=device)

    def load(self, stack: Work) -> None:
        """Begin a round: set weights and the tensors of hooks."""
        self.theta.copy_(stack["theta"][:, : self.theta.shape[1]])
        for name, tensor in self.work.items():
            tensor.copy_(stack[name])
        if self.velocity is not None:
            self.velocity.zero_()

    def step(self) -> None:
        """gradient -> transform -> clip -> SGD for the clients whose count is not 0; does not wait for the host."""
        leaf = self.theta.detach().requires_grad_()

        def loss_of(theta: Tensor, work: Work, x: Tensor, y: Tensor) -> Tensor:
            return self._task.loss(self._net, theta, work, (x, y), {})

        with self._arithmetic.autocast():
            losses = vmap(loss_of)(leaf, self.work, self.x, self.y)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        with torch.no_grad():
            active = self.counts > 0
            update = partial(masked_sgd_step_, spec=self._spec, lr=self.lr, active=active[:, None])
            local_step_(self._task, self.theta, gradient, self.velocity, self.work, update)
            self.loss_sums += losses.detach().double() * self.counts


def masked_sgd_step_(
    theta: Tensor, gradient: Tensor, velocity: Tensor | None, spec: FitSpec, lr: Tensor, active: Tensor
) -> None:
    """`core.optim.sgd_step_` for the rows of theta [K, T] with active [K, 1]; the others keep weights and velocity.

    The learning rate is a tensor, because a captured step would keep the number of its capture.
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


def block_losses(sums: Tensor, contexts: Sequence[ClientContext]) -> list[TrainLoss]:
    """Each client's mean losses, from sums over examples [epochs, K]."""
    found = []
    for own, context in zip(sums.T.tolist(), contexts, strict=True):
        examples = max(context.examples, 1)
        found.append(TrainLoss(own[-1] / examples, sum(own) / (examples * len(own))))
    return found


def static_task(task: ClientTask, coupled: bool) -> bool:
    """Whether a task's step may run for clients that have finished: it changes only theta."""
    return not (coupled or task.project_weights is not None or task.updates)


@final
class StaticTrainer:
    """Trains blocks through captured steps; a block of the same task and width is captured once."""

    def __init__(self, runner: ClientRunner, capture: bool = True) -> None:
        self._runner = runner
        self._capture = capture
        self._blocks: dict[tuple[int, int], tuple[StaticBlock, StepGraph]] = {}
        data = runner.federation
        self._most_examples = max(1, *(data.examples(client) for client in range(data.num_clients)))

    def fit(
        self, task: ClientTask, spec: FitSpec, stack: Work, contexts: Sequence[ClientContext]
    ) -> list[TrainLoss]:
        """Train all clients of the block in stack["theta"] [K, P]. Returns each client's mean losses."""
        spec = replace(spec, batch_size=min(spec.batch_size, self._most_examples))
        block, graph = self._prepared(task, spec, stack)
        sums = block.loss_sums.new_zeros(spec.epochs, len(contexts))
        for epoch in range(spec.epochs):
            block.lr.fill_(spec.schedule(contexts[0].clock.round, epoch))
            block.loss_sums.zero_()
            data = block_epoch(self._runner, contexts, epoch, spec.batch_size)
            for step in range(data.steps):
                block.x.copy_(data.x[:, step])
                block.y.copy_(data.y[:, step])
                block.counts.copy_(data.counts[step])
                graph()
            sums[epoch] = block.loss_sums
        stack["theta"][:, : block.theta.shape[1]] = block.theta
        return block_losses(sums, contexts)  # only here the host waits for the device

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
