"""K clients per step as one batch with per-client weights: for models so small that a step is all overhead.

Weights are a matrix [K, P]; layers of all clients are one operation (`block_net.py`, else `torch.func.vmap`). Hooks
and the SGD step already work on [..., T]. Clients stand in order of their examples, so those that still have a batch
are the first rows, a view; a shorter batch is padded with ignored labels. Where examples of a batch influence each
other (BatchNorm, layers that a task replaced) steps are cut by batch size instead, without padding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import ClientContext, ClientReply, ClientReport, ClientTask, Work, sees_theta
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch
from ssfl.core.optim import FitSpec, sgd_step_
from ssfl.engine.block_batches import train_steps
from ssfl.engine.block_net import BlockNet
from ssfl.engine.block_scores import BLOCK_SALIENCIES, block_saliency, block_tallies
from ssfl.engine.device import on_host, stacked
from ssfl.engine.device_block import StaticTrainer, static_task
from ssfl.engine.jobs import Job, Outcome, check_finite
from ssfl.engine.local import ClientRunner


class UnbatchableError(ValueError):
    """A network that cannot train K clients at once; says why and what to use instead."""


@final
class BatchedExecutor:
    """Blocks of `block` clients, each computed as one: training, own tests, saliencies that are known for blocks."""

    def __init__(
        self, runner: ClientRunner, block: int, static: bool | None = None, graphs: bool = True
    ) -> None:
        """static: steps of one shape throughout (`device_block.py`); None: on a device. graphs: capture them."""
        check_batchable(runner.module)
        self.runner = runner
        self.block = block
        self.static = runner.arithmetic.device.type != "cpu" if static is None else static
        self._trainer = StaticTrainer(runner, graphs)
        self._nets: dict[int, BlockNet] = {}

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """In blocks, in the jobs' order; jobs of which nothing is computed on batches go one by one."""
        for start in range(0, len(jobs), self.block):
            block = jobs[start : start + self.block]
            task = self.runner.tasks[block[0].phase]
            if len(block) == 1 or (task.fit, task.probe, task.evaluate) == (None, None, ()):
                yield from map(self.runner.run, block)
            else:
                yield from self._run_block(task, block)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The whole test set in batches."""
        losses, hits, _ = self.runner.predict(theta, None)
        return losses, hits

    def close(self) -> None:
        """Nothing to end."""

    def _run_block(self, task: ClientTask, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One block's outcomes in the jobs' order; inside, clients stand in order of their examples, most first."""
        start = time.perf_counter()
        runner, device = self.runner, self.runner.arithmetic.device
        known = [runner.context(job) for job in jobs]
        at = sorted(range(len(jobs)), key=lambda k: -known[k].examples)
        contexts = [known[k] for k in at]
        works = [
            task.receive(jobs[k].instruction.inbox, jobs[k].state, c)
            for k, c in zip(at, contexts, strict=True)
        ]
        stack = stacked(works, device)
        tallies = self._tallies(task, "received", stack, contexts)
        losses: Sequence[float | None] = [None] * len(jobs)
        if task.fit is not None:
            losses = self._fit(task, task.fit, stack, contexts)
            for loss, context in zip(losses, contexts, strict=True):
                check_finite(loss, context)
        tested = self._tallies(task, "trained", stack, contexts)
        probed = self._probed(task, stack, contexts)
        seconds = (time.perf_counter() - start) / len(jobs)
        for k in sorted(range(len(jobs)), key=at.__getitem__):
            job, context = jobs[at[k]], contexts[k]
            told = on_host(_own(stack, k, works[k], task), works[k], task)
            payload, state = task.reply(told, None if probed is None else probed[k], job.state, context)
            flops = runner.flops(task, told, context)
            report = ClientReport(context.examples, losses[k], tallies[k] | tested[k], flops, seconds)
            yield Outcome(ClientReply(context.client, payload, report), state)

    def _net(self, task: ClientTask) -> BlockNet:
        module = self.runner.flat(task).module
        if id(module) not in self._nets:
            arithmetic = self.runner.arithmetic
            self._nets[id(module)] = BlockNet(module, self.layout, arithmetic.autocast, arithmetic.native)
        return self._nets[id(module)]

    def _tallies(
        self, task: ClientTask, when: str, stack: Work, contexts: Sequence[ClientContext]
    ) -> list[dict[str, Tally]]:
        """Every client's test at this moment of its work, if the task asks for it; [K]."""
        if when not in task.evaluate:
            return [{} for _ in contexts]
        clients = [c.client for c in contexts]
        return [{when: t} for t in block_tallies(self.runner, self._net(task), task, stack, clients)]

    def _probed(
        self, task: ClientTask, stack: Work, contexts: Sequence[ClientContext]
    ) -> Sequence[Tensor] | None:
        """Every client's mean saliency [T] in the host's memory, if the task asks for it; [K]."""
        if task.probe is None:
            return None
        if task.probe.saliency in BLOCK_SALIENCIES:
            return list(
                block_saliency(self.runner, self._net(task), task.probe, stack["theta"], contexts).cpu()
            )
        return [
            self.runner.probe(task, task.probe, {name: t[k] for name, t in stack.items()}, context).cpu()
            for k, context in enumerate(contexts)
        ]

    def _fit(
        self, task: ClientTask, spec: FitSpec, stack: Work, contexts: list[ClientContext]
    ) -> list[float]:
        """Train all clients of the block in stack["theta"] [K, P]; mean losses of the last epoch."""
        runner, size = self.runner, self.runner.layout.trained_size
        coupled = size < runner.layout.size or type(task).prepare is not ClientTask.prepare
        if self.static and static_task(task, coupled):
            return self._trainer.fit(task, spec, stack, contexts)
        net = self._net(task)
        net.module.train()
        velocity = torch.zeros_like(stack["theta"][:, :size]) if spec.momentum else None
        sums = stack["theta"].new_zeros(len(contexts), dtype=torch.float64)
        for epoch in range(spec.epochs):
            lr = spec.schedule(contexts[0].clock.round, epoch)
            sums.zero_()
            for rows, batch, counts in train_steps(runner, contexts, epoch, spec.batch_size, coupled):
                # Clients stand in order, so those of a step are neighbours: views, nothing is copied.
                own = {name: tensor[rows] for name, tensor in stack.items()}
                moved = None if velocity is None else velocity[rows]
                losses = self._step(task, spec, net, own, moved, batch, lr)
                sums[rows] += losses.double() * counts.to(losses.device)
        return [s / max(c.examples, 1) for s, c in zip(sums.tolist(), contexts, strict=True)]

    def _step(
        self,
        task: ClientTask,
        spec: FitSpec,
        net: BlockNet,
        work: Work,
        velocity: Tensor | None,
        batch: Batch,
        lr: float,
    ) -> Tensor:
        """One SGD step in place on work["theta"] [k, P]; the losses [k] before it."""
        trained = work["theta"][:, : net.layout.trained_size]
        hooks = {name: tensor for name, tensor in work.items() if name != "theta"}
        if sees_theta(task) and net.layout.size == net.layout.trained_size:
            losses, gradient = net.losses_and_gradient(trained, batch)
        else:
            losses, gradient = net.objective_and_gradient(task, work["theta"], hooks, batch)
        with torch.no_grad():
            gradient = task.transform_gradient(gradient, trained, hooks)
            sgd_step_(trained, gradient, velocity, spec, lr)
            projected = task.project_weights(trained, hooks)
            if projected is not trained:
                trained.copy_(projected)
        return losses


def _own(stack: Work, client: int, received: Work, task: ClientTask) -> Work:
    """One client's work after training, in memory of its own where it stays on the host."""
    if stack["theta"].device.type != "cpu":
        return {name: t[client] for name, t in stack.items()}
    return {**received, **{name: stack[name][client].clone() for name in ("theta", *task.updates)}}


def check_batchable(module: nn.Module) -> None:
    """UnbatchableError for layers that draw: their draws could not equal the sequential executor's."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise UnbatchableError(
                f"engine.executor=batched: layer {name or type(part).__name__} draws at random in training; "
                "use engine.executor=sequential or processes"
            )
