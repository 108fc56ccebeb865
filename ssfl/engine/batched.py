"""K clients per step as one batch with per-client weights: for models so small that a step is all overhead.

Weights are a matrix [K, P]; `torch.func.vmap` turns a convolution with per-client weights into one grouped
convolution. Hooks and the SGD step already work on [..., T]. Clients with fewer examples are padded with ignored
labels, and a client that has finished is frozen by a `where` (fedjax's padded blocks); where examples of a batch
influence each other (BatchNorm, layers that a task replaced) steps are grouped by batch size instead, without padding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap

from ssfl.algorithms.base import ClientContext, ClientReply, ClientReport, ClientTask, Work
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.core.optim import FitSpec, sgd_step_
from ssfl.engine.device import on_device, on_host, stacked
from ssfl.engine.device_block import IGNORED, StaticTrainer, static_task
from ssfl.engine.local import ClientRunner, Job, Outcome, check_finite


class UnbatchableError(ValueError):
    """A network that cannot train K clients at once; says why and what to use instead."""


@dataclass
class Block:
    """K clients in training: what is theirs, stacked."""

    theta: Tensor
    work: Work
    contexts: Sequence[ClientContext]

    def rows(self, clients: Tensor) -> tuple[Tensor, Work]:
        """The stacked tensors of some of the clients."""
        return self.theta[clients], {k: v[clients] for k, v in self.work.items()}


class BatchedExecutor:
    """Blocks of `block` clients, each computed as one; evaluation, probes and replies client by client."""

    def __init__(
        self, runner: ClientRunner, block: int, static: bool | None = None, graphs: bool = True
    ) -> None:
        """static: steps of one shape throughout (`device_block.py`); None: on a device. graphs: capture them."""
        check_batchable(runner.module)
        self.runner = runner
        self.block = block
        self.static = runner.arithmetic.device.type != "cpu" if static is None else static
        self._trainer = StaticTrainer(runner, graphs)

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Jobs without training go one by one; the others in blocks, in the jobs' order."""
        for start in range(0, len(jobs), self.block):
            block = jobs[start : start + self.block]
            task = self.runner.tasks[block[0].phase]
            if task.fit is None or len(block) == 1:
                yield from map(self.runner.run, block)
            else:
                yield from self._run_block(task, task.fit, block)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The whole test set in batches."""
        losses, hits, _ = self.runner.predict(theta, None)
        return losses, hits

    def close(self) -> None:
        """Nothing to end."""

    def _run_block(self, task: ClientTask, spec: FitSpec, jobs: Sequence[Job]) -> Iterator[Outcome]:
        start = time.perf_counter()
        runner = self.runner
        device = runner.arithmetic.device
        contexts = [runner.context(j) for j in jobs]
        works = [task.receive(j.instruction.inbox, j.state, c) for j, c in zip(jobs, contexts, strict=True)]
        tested = [
            runner.tallies(task, "received", on_device(w, device), c) if "received" in task.evaluate else {}
            for w, c in zip(works, contexts, strict=True)
        ]
        stack = stacked(works, device)
        losses = self._fit(task, spec, stack, contexts)
        seconds = (time.perf_counter() - start) / len(jobs)
        for k, (job, context, received, tally, loss) in enumerate(
            zip(jobs, contexts, works, tested, losses, strict=True)
        ):
            check_finite(loss, context)
            work = _own(stack, k, received, task)
            tallies = tally | runner.tallies(task, "trained", work, context)
            probed = None if task.probe is None else runner.probe(task, task.probe, work, context).cpu()
            told = on_host(work, received, task)
            payload, state = task.reply(told, probed, job.state, context)
            flops = runner.flops(task, told, context)
            report = ClientReport(context.examples, loss, tallies, flops, seconds)
            yield Outcome(ClientReply(context.client, payload, report), state)

    def _fit(
        self, task: ClientTask, spec: FitSpec, stack: Work, contexts: list[ClientContext]
    ) -> list[float]:
        """Train all clients of the block in stack["theta"] [K, P]; mean losses of the last epoch."""
        runner, size = self.runner, self.runner.layout.trained_size
        coupled = size < runner.layout.size or type(task).prepare is not ClientTask.prepare
        if self.static and static_task(task, coupled):
            return self._trainer.fit(task, spec, stack, contexts)
        device = runner.arithmetic.device
        module = runner.flat(task).module
        module.train()
        net = FlatNet(module, runner.layout)
        block = Block(stack["theta"], {k: t for k, t in stack.items() if k != "theta"}, contexts)
        velocity = torch.zeros_like(block.theta[:, :size]) if spec.momentum else None
        sums = torch.zeros(len(contexts), dtype=torch.float64, device=device)
        for epoch in range(spec.epochs):
            lr = spec.schedule(contexts[0].clock.round, epoch)
            sums.zero_()
            feeds = [runner.train_batches(c, epoch, spec.batch_size) for c in contexts]
            for group, batch, counts in aligned_batches(feeds, coupled):
                rows = group.to(device)
                losses = self._step(task, spec, net, block, velocity, rows, batch, lr)
                sums[rows] += losses.double() * counts.to(device)
        return [s / c.examples for s, c in zip(sums.tolist(), contexts, strict=True)]

    def _step(
        self,
        task: ClientTask,
        spec: FitSpec,
        net: FlatNet,
        block: Block,
        velocity: Tensor | None,
        group: Tensor,
        batch: Batch,
        lr: float,
    ) -> Tensor:
        """One SGD step of the clients in `group`; their losses [k]."""
        size = net.layout.trained_size
        theta, work = block.rows(group)
        leaf = theta[:, :size].detach().requires_grad_()
        # Contiguous copies: BatchNorm under vmap updates nothing in a strided view.
        views = net.layout.statistics(theta[:, size:])
        statistics = {name: s.clone(memory_format=torch.contiguous_format) for name, s in views.items()}

        def loss_of(t: Tensor, w: Work, x: Tensor, y: Tensor, own: Statistics) -> Tensor:
            return task.objective(net, t, w, (x, y), own)

        with self.runner.arithmetic.autocast():
            losses = vmap(loss_of)(leaf, work, *batch, statistics)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        with torch.no_grad():
            trained = leaf.detach()
            gradient = task.transform_gradient(gradient, trained, work)
            moved = None if velocity is None else velocity[group]
            sgd_step_(trained, gradient, moved, spec, lr)
            block.theta[group, :size] = task.project_weights(trained, work)
            for name in task.updates:
                block.work[name][group] = work[name]
            if statistics:
                block.theta[group, size:] = torch.cat([s.flatten(1) for s in statistics.values()], dim=1)
            if velocity is not None and moved is not None:
                velocity[group] = moved
        return losses.detach()


def _own(stack: Work, client: int, received: Work, task: ClientTask) -> Work:
    """One client's work after training, in memory of its own where it stays on the host."""
    if stack["theta"].device.type != "cpu":
        return {name: t[client] for name, t in stack.items()}
    return {**received, **{name: stack[name][client].clone() for name in ("theta", *task.updates)}}


def aligned_batches(
    feeds: Sequence[Iterator[Batch]], coupled: bool
) -> Iterator[tuple[Tensor, Batch, Tensor]]:
    """One epoch of K clients, step by step: (clients [k], (x [k, B, ...], y [k, B]), examples [k]).

    Uncoupled: all clients that still have a batch, shorter ones padded with ignored labels. Coupled: the same,
    split by batch size, nothing padded.
    """
    while True:
        batches = {k: b for k, feed in enumerate(feeds) if (b := next(feed, None)) is not None}
        if not batches:
            return
        sizes = {k: len(b[1]) for k, b in batches.items()}
        groups = [list(batches)]
        if coupled:
            groups = [[k for k in batches if sizes[k] == n] for n in sorted(set(sizes.values()))]
        for group in groups:
            width = max(sizes[k] for k in group)
            padded = [_padded(batches[k], width) for k in group]
            x, y = torch.stack([p[0] for p in padded]), torch.stack([p[1] for p in padded])
            yield torch.tensor(group), (x, y), torch.tensor([sizes[k] for k in group])


def _padded(batch: Batch, width: int) -> Batch:
    x, y = batch
    missing = width - len(y)
    if not missing:
        return batch
    return torch.cat([x, x.new_zeros((missing, *x.shape[1:]))]), torch.cat(
        [y, y.new_full((missing,), IGNORED)]
    )


def check_batchable(module: nn.Module) -> None:
    """UnbatchableError for layers that draw: their draws could not equal the sequential executor's."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise UnbatchableError(
                f"engine.executor=batched: layer {name or type(part).__name__} draws at random in training; "
                "use engine.executor=sequential or processes"
            )
