"""K clients per step as one batch with per-client weights: for small models, whose steps are mostly overhead.

Weights are a matrix [K, P]; layers of all clients are one operation (`network.py`, else `torch.func.vmap`). Hooks
and the SGD step already work on [..., T]. Clients are sorted by number of examples, so those with a batch left are the
first rows, which is a view; a shorter batch is padded with ignored labels. If examples of a batch influence each other
(BatchNorm, layers that a task replaced), steps are split by batch size instead, without padding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import THETA, ClientContext, ClientTask, Moment, TrainLoss, Work
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch
from ssfl.core.optim import FitSpec
from ssfl.engine.client.errors import Place, check_finite, check_finite_scores, errors_named, place_of
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.client.step import Update, local_step_, sgd
from ssfl.engine.client.visit import Computed, begin_visit, end_visit
from ssfl.engine.compute.device import stacked
from ssfl.engine.executors.batched.batchable import Coupling, check_batchable, check_lone_examples
from ssfl.engine.executors.batched.batches import train_steps
from ssfl.engine.executors.batched.measures import block_saliency, block_tallies
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.batched.static_steps import StaticTrainer, block_losses, static_task


@final
class BatchedExecutor:
    """Blocks of `block` clients, each computed at once: training, tests, and saliencies of the gradient."""

    def __init__(
        self, runner: ClientRunner, block: int, static: bool | None = None, graphs: bool = True
    ) -> None:
        """static: all steps have one shape (`static_steps.py`); None: only on a device. graphs: capture CUDA graphs."""
        shape, dtype = runner.federation.input_shape, runner.input_dtype
        check_batchable(runner.module, shape, dtype)
        source = runner.federation
        check_lone_examples(
            runner.example_rules, map(source.examples, range(source.num_clients)), runner.tasks
        )
        self.runner = runner
        self._coupled = Coupling.of(runner.module, shape, dtype)
        self.block = block
        self.static = runner.arithmetic.device.type != "cpu" if static is None else static
        self._trainer = StaticTrainer(runner, graphs)
        self._nets: dict[int, BlockNet] = {}

    @property
    def layout(self) -> Layout:
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """Runs blocks in the jobs' order; jobs without computation on batches run one by one."""
        for start in range(0, len(jobs), self.block):
            block = jobs[start : start + self.block]
            task = self.runner.tasks[block[0].phase]
            if len(block) == 1 or (task.fit, task.probe, task.evaluate) == (None, None, ()):
                yield from map(self.runner.run, block)
            else:
                clients = ", ".join(str(job.client) for job in block)
                with errors_named(Place(clients, block[0].phase, block[0].clock.round)):
                    yield from self._run_block(task, block)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See `Executor.predict`; in batches."""
        losses, hits, _ = self.runner.predict(theta, None)
        return losses, hits

    def close(self) -> None:
        """Does nothing."""

    def _run_block(self, task: ClientTask, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """One block's outcomes in the jobs' order; inside, clients are sorted by number of examples, largest first."""
        start = time.perf_counter()
        runner, device = self.runner, self.runner.arithmetic.device
        known = [runner.context(job) for job in jobs]
        at = sorted(range(len(jobs)), key=lambda k: -known[k].examples)
        contexts = [known[k] for k in at]
        visits = [begin_visit(jobs[k], task, c, runner.wire_stack) for k, c in zip(at, contexts, strict=True)]
        stack = stacked([visit.received for visit in visits], device)
        tallies = self._tallies(task, "received", stack, contexts)
        losses: Sequence[TrainLoss | None] = [None] * len(jobs)
        if task.fit is not None:
            losses = found = self._fit(task, task.fit, stack, contexts)
            for loss, context in zip(found, contexts, strict=True):
                check_finite(place_of(context, jobs[0].phase), loss)
        tested = self._tallies(task, "trained", stack, contexts)
        probed = self._probed(task, stack, contexts)
        for scores, context in zip(probed or (), contexts):
            check_finite_scores(place_of(context, jobs[0].phase), scores)
        seconds = (time.perf_counter() - start) / len(jobs)
        for k in sorted(range(len(jobs)), key=at.__getitem__):
            visit = visits[k]
            work = _own(stack, k, visit.received, task)
            computed = Computed(work, probed[k] if probed else None, losses[k], tallies[k] | tested[k])
            yield end_visit(visit, computed, runner.flops(task, work, visit.context), seconds)

    def _net(self, task: ClientTask) -> BlockNet:
        module = self.runner.flat(task).module
        if id(module) not in self._nets:
            arithmetic = self.runner.arithmetic
            self._nets[id(module)] = BlockNet(module, self.layout, arithmetic.autocast, arithmetic.native)
        return self._nets[id(module)]

    def _tallies(
        self, task: ClientTask, when: Moment, stack: Work, contexts: Sequence[ClientContext]
    ) -> list[dict[str, Tally]]:
        """Every client's test at this moment, if the task requests it; [K]."""
        if when not in task.evaluate:
            return [{} for _ in contexts]
        clients = [c.client for c in contexts]
        if self._coupled.evaluation:  # in a block, shorter splits are padded
            works = [{name: t[k] for name, t in stack.items()} for k in range(len(contexts))]
            return [self.runner.tallies(task, when, w, c) for w, c in zip(works, contexts, strict=True)]
        return block_tallies(self.runner, self._net(task), task, stack, clients, when)

    def _probed(
        self, task: ClientTask, stack: Work, contexts: Sequence[ClientContext]
    ) -> Sequence[Tensor] | None:
        """Every client's mean saliency [T] in host memory, if the task has a probe; [K]."""
        if task.probe is None:
            return None
        if task.probe.saliency.of_gradient is not None:
            return list(
                block_saliency(
                    self.runner,
                    self._net(task),
                    task.probe,
                    stack[THETA],
                    contexts,
                    self._coupled.training or self._coupled.evaluation,
                ).cpu()
            )
        return [
            self.runner.probe(task, task.probe, {name: t[k] for name, t in stack.items()}, context).cpu()
            for k, context in enumerate(contexts)
        ]

    def _fit(
        self, task: ClientTask, spec: FitSpec, stack: Work, contexts: list[ClientContext]
    ) -> list[TrainLoss]:
        """Train all clients of the block in stack[THETA] [K, P]. Returns each client's mean losses."""
        runner, size = self.runner, self.runner.layout.trained_size
        coupled = self._coupled.training or task.prepare is not None
        if self.static and static_task(task, coupled):
            return self._trainer.fit(task, spec, stack, contexts)
        net = self._net(task)
        net.module.train()
        velocity = torch.zeros_like(stack[THETA][:, :size]) if spec.momentum else None
        sums = stack[THETA].new_zeros(spec.epochs, len(contexts), dtype=torch.float64)
        for epoch in range(spec.epochs):
            update = sgd(spec, spec.schedule(contexts[0].clock.round, epoch))
            for rows, batch, counts in train_steps(runner, contexts, epoch, spec.batch_size, coupled):
                # Clients are sorted, so the rows of a step are contiguous: views, no copies.
                own = {name: tensor[rows] for name, tensor in stack.items()}
                moved = None if velocity is None else velocity[rows]
                losses = self._step(task, net, own, moved, batch, update)
                sums[epoch, rows] += losses.double() * counts.to(losses.device)
        return block_losses(sums, contexts)

    def _step(
        self,
        task: ClientTask,
        net: BlockNet,
        work: Work,
        velocity: Tensor | None,
        batch: Batch,
        update: Update,
    ) -> Tensor:
        """One SGD step in place on work[THETA] [k, P]; the losses [k] before it."""
        trained = work[THETA][:, : net.layout.trained_size]
        hooks = {name: tensor for name, tensor in work.items() if name != THETA}
        if task.sees_theta and net.layout.size == net.layout.trained_size:
            losses, gradient = net.losses_and_gradient(trained, batch)
        else:
            losses, gradient = net.objective_and_gradient(task, work[THETA], hooks, batch)
        with torch.no_grad():
            local_step_(task, trained, gradient, velocity, hooks, update, net.unused)
        return losses


def _own(stack: Work, client: int, received: Work, task: ClientTask) -> Work:
    """One client's work after training; copied if it is in host memory."""
    if stack[THETA].device.type != "cpu":
        return {name: t[client] for name, t in stack.items()}
    return {**received, **{name: stack[name][client].clone() for name in (THETA, *task.updates)}}
