"""One client's work, alone: receive -> fit -> probe -> evaluate -> reply. Also what a deployed site runs.

This is the plainest executor's inside, the reference that every faster way must match.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientReport,
    ClientTask,
    Probe,
    Work,
    sees_theta,
)
from ssfl.core.cost import LayerCost, forward_flops, layer_costs, training_flops
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch, FlatNet
from ssfl.core.optim import FitSpec, sgd_step_
from ssfl.core.rng import stream
from ssfl.engine.arithmetic import Arithmetic
from ssfl.engine.compaction import Plan, compacted, filtered_weights, live_channels, training_plan
from ssfl.engine.device import EVALUATION_BATCH_ON_DEVICE, layer_draws, on_device, on_host
from ssfl.engine.flat_module import FlatModule
from ssfl.engine.jobs import Job, Outcome, check_finite
from ssfl.engine.order import BatchOrder, SeededOrder
from ssfl.engine.source import DataSource

EVALUATION_BATCH = 32
"""Examples of a forward pass on a CPU: as fast as 256 within 5 %, with an eighth of the memory."""


def _go_on() -> None:
    """Nobody breaks this work off."""


@dataclass
class ClientRunner:
    """Holds one network and the data, and runs any client's job on them."""

    module: nn.Module
    federation: DataSource
    tasks: Mapping[str, ClientTask]
    seed: int
    order: BatchOrder | None = None
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    compaction: bool = False
    """Leave out what zero weights multiply (`compaction.py`): the same results, but for the order of sums."""
    heed: Callable[[], None] = _go_on
    """Called before every minibatch; raises to break off (`threads.py`)."""

    def __post_init__(self) -> None:
        self.module.to(self.arithmetic.device, self.arithmetic.dtype)
        self.layout = Layout.of(self.module)
        self.costs: tuple[LayerCost, ...] = layer_costs(self.module, self.federation.input_shape)
        self.batch_order: BatchOrder = self.order or SeededOrder(self.seed)
        self._flat: dict[int, FlatModule] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flat": {}}

    def heeding(self, heed: Callable[[], None]) -> ClientRunner:
        """A runner over the same network and its flat memory, not to be used at the same time."""
        other = replace(self, heed=heed)
        other._flat = self._flat
        return other

    def flat(self, task: ClientTask | None = None) -> FlatModule:
        """The network as `task` prepares it (once a task), over flat memory."""
        if task is None or type(task).prepare is ClientTask.prepare:
            task = None
        key = 0 if task is None else id(task)
        if key not in self._flat:
            # A copy to prepare: two flat memories under one module would leave the first without effect.
            module = self.module if task is None else task.prepare(copy.deepcopy(self.module))
            self._flat[key] = FlatModule(module, self.layout, self.arithmetic.compiled)
        return self._flat[key]

    @property
    def model_bytes(self) -> int:
        """Of one copy of the weights and statistics."""
        return self.layout.size * self.arithmetic.dtype.itemsize

    def context(self, job: Job) -> ClientContext:
        """What the client knows besides data and inbox."""
        client = job.instruction.client
        return ClientContext(client, job.clock, self.seed, self.layout, self.federation.examples(client))

    def run(self, job: Job) -> Outcome:
        """The whole client. Raises DivergedError when its loss is not finite."""
        start = time.perf_counter()
        task, context = self.tasks[job.phase], self.context(job)
        received = task.receive(job.instruction.inbox, job.state, context)
        work = on_device(received, self.arithmetic.device)
        tallies = self.tallies(task, "received", work, context)
        loss: float | None = None
        if task.fit is not None:
            loss = self.fit(task, task.fit, work, context)
            check_finite(loss, context)
        tallies |= self.tallies(task, "trained", work, context)
        probed = self.probe(task, task.probe, work, context) if task.probe is not None else None
        told = on_host(work, received, task)
        payload, state = task.reply(told, None if probed is None else probed.cpu(), job.state, context)
        report = ClientReport(
            context.examples, loss, tallies, self.flops(task, told, context), time.perf_counter() - start
        )
        return Outcome(ClientReply(context.client, payload, report), state)

    # ── fit ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def fit(self, task: ClientTask, spec: FitSpec, work: Work, context: ClientContext) -> float:
        """Local epochs of SGD; leaves the result in work["theta"]; mean loss over the last epoch's examples.

        Layers that draw (dropout) draw from a stream named by client and round.
        """
        seed = stream(self.seed, "layers", context.client, context.clock.round).initial_seed()
        winograd = self.arithmetic.winograd
        module = self.flat(task).module
        plan: Plan = {}
        if self.compaction:
            filtered = filtered_weights(module) if winograd else ()
            plan = training_plan(task, work["theta"], work, self.layout, filtered)
        layers = self.arithmetic.layers(module)
        with layer_draws(self.arithmetic.device, seed), compacted(module, plan, winograd), layers:
            losses, counts = self.train(task, spec, work, context)
        return sum(v * n for v, n in zip(losses.tolist(), counts, strict=True)) / max(sum(counts), 1)

    def train(
        self, task: ClientTask, spec: FitSpec, work: Work, context: ClientContext
    ) -> tuple[Tensor, list[int]]:
        """The local epochs of `fit`; the last one's losses and examples by step.

        The losses [steps] stay on the device, so that nothing here waits for it.
        """
        flat = self.flat(task)
        flat.load(work["theta"])
        flat.set_training(True)
        trained = flat.trained
        gradient_of = self._plain_gradient if sees_theta(task) else self._objective_gradient
        velocity = torch.zeros_like(flat.gradient) if spec.momentum else None
        losses: list[Tensor] = []
        counts: list[int] = []
        for epoch in range(spec.epochs):
            lr = spec.schedule(context.clock.round, epoch)
            losses, counts = [], []
            for batch in self.train_batches(context, epoch, spec.batch_size):
                loss = gradient_of(task, flat, work, batch)
                with torch.no_grad():
                    gradient = task.transform_gradient(flat.gradient, trained, work)
                    sgd_step_(trained, gradient, velocity, spec, lr)
                    projected = task.project_weights(trained, work)
                    if projected is not trained:
                        trained.copy_(projected)
                losses.append(loss)
                counts.append(len(batch[1]))
        work["theta"] = flat.result()
        return torch.stack(losses) if losses else flat.theta.new_zeros(0), counts

    def _plain_gradient(self, task: ClientTask, flat: FlatModule, work: Work, batch: Batch) -> Tensor:
        """Mean cross-entropy and its gradient into `flat.gradient`, through the module itself."""
        with self.arithmetic.autocast():
            logits = flat.forward(batch[0])
        loss = cross_entropy(logits.to(self.arithmetic.dtype), batch[1])
        torch.autograd.backward(loss)
        flat.take_gradient()
        return loss.detach()

    def _objective_gradient(self, task: ClientTask, flat: FlatModule, work: Work, batch: Batch) -> Tensor:
        """A method's own objective, differentiated with respect to the flat vector."""
        leaf = flat.trained.detach().requires_grad_()
        net = FlatNet(flat.module, self.layout)
        with self.arithmetic.autocast():
            loss = task.objective(net, leaf, work, batch, flat.statistics)
        (gradient,) = torch.autograd.grad(loss, leaf)
        flat.gradient.copy_(gradient)
        return loss.detach()

    def train_batches(self, context: ClientContext, epoch: int, batch_size: int) -> Iterator[Batch]:
        """One local epoch's minibatches, augmented by the stream of (client, round, epoch)."""
        client, round_ = context.client, context.clock.round
        order = self.batch_order.epoch(client, round_, epoch, context.examples)
        generator = stream(self.seed, "augment", client, round_, epoch)
        return map(self.to_compute, self.federation.train_batches(client, order, batch_size, generator))

    def to_compute(self, batch: Batch) -> Batch:
        """A batch in the type and memory format of the computation."""
        self.heed()
        return self.arithmetic.batch(batch)

    @property
    def evaluation_batch(self) -> int:
        """Examples of an evaluation's forward pass; on a device large ones, so that it is busy."""
        return EVALUATION_BATCH if self.arithmetic.device.type == "cpu" else EVALUATION_BATCH_ON_DEVICE

    # ── probe ────────────────────────────────────────────────────────────────────────────────────────────────────
    def probe(self, task: ClientTask, probe: Probe, work: Work, context: ClientContext) -> Tensor:
        """The mean saliency [T] over `probe.batches` minibatches at work["theta"]."""
        flat = self.flat(task)
        flat.set_training(probe.training_mode)
        net = FlatNet(flat.module, self.layout)
        total = torch.zeros_like(flat.gradient)
        for batch in self.probe_batches(probe, context):
            total += probe.saliency(net, work["theta"], batch)
        return total / probe.batches

    def probe_batches(self, probe: Probe, context: ClientContext) -> Iterator[Batch]:
        """The scoring minibatches: the client's own training data, shuffled and augmented as in training."""
        client, round_ = context.client, context.clock.round
        for index in range(probe.batches):
            order = self.batch_order.probe(client, round_, index, context.examples, probe.batch_size)
            generator = stream(self.seed, "augment-probe", client, round_, index)
            batches = self.federation.train_batches(client, order, probe.batch_size, generator)
            yield self.to_compute(next(iter(batches)))

    # ── evaluation and cost ──────────────────────────────────────────────────────────────────────────────────────
    def tallies(self, task: ClientTask, when: str, work: Work, context: ClientContext) -> dict[str, Tally]:
        """The client's test at this moment of its work, if the task asks for it."""
        if when not in task.evaluate:
            return {}
        return {when: self.evaluate_client(task, work, context.client)}

    def evaluate_client(self, task: ClientTask, work: Work, client: int) -> Tally:
        """The client's model on its own test split."""
        size = self.layout.trained_size
        theta = work["theta"]
        seen = task.effective_weights(theta[:size], work)
        return self.evaluate(torch.cat([seen, theta[size:]]) if seen is not theta else theta, client, task)

    def evaluate(self, theta: Tensor, client: int | None, task: ClientTask | None = None) -> Tally:
        """Weights [P], as the network sees them, on a client's test split, or (None) on the whole test set."""
        losses, hits, labels = self.predict(theta, client, task)
        return Tally.of(losses, hits, labels, self.federation.arrays.num_classes)

    def predict(
        self, theta: Tensor, client: int | None, task: ClientTask | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per-example losses, hits and labels [B], in the order of the split and the host's memory."""
        return self._predict(theta, self.federation.test_batches(client, self.evaluation_batch), task)

    def predict_rows(self, theta: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Losses and hits of the test rows first..last-1: a slice of the whole test set's `predict`."""
        batches = self.federation.test_rows(first, last, self.evaluation_batch)
        return self._predict(theta, batches, None)[:2]

    def _predict(
        self, theta: Tensor, batches: Iterator[Batch], task: ClientTask | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat = self.flat(task)
        flat.load(theta)
        flat.set_training(False)
        losses, hits, labels = [], [], []
        winograd = self.arithmetic.winograd
        plan: Plan = {}
        if self.compaction:
            filtered = filtered_weights(flat.module) if winograd else ()
            plan = live_channels(self.layout, theta, filtered=filtered)
        layers = self.arithmetic.layers(flat.module)
        with torch.inference_mode(), compacted(flat.module, plan, winograd), layers:
            for x, y in map(self.to_compute, batches):
                with self.arithmetic.autocast():
                    logits = flat.module(x)
                logits = logits.to(self.arithmetic.dtype)
                losses.append(cross_entropy(logits, y, reduction="none"))
                hits.append(logits.argmax(1) == y)
                labels.append(y)
        if not labels:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
        return torch.cat(losses).cpu(), torch.cat(hits).cpu(), torch.cat(labels).cpu()

    def flops(self, task: ClientTask, work: Work, context: ClientContext) -> int:
        """Training FLOPs of this job: 3 forwards an example; a mask [T] in the work counts only what it keeps."""
        total = 0
        if task.fit is not None:
            kept = self.layout.kept_per_layer(work["mask"]) if "mask" in work else None
            forward = forward_flops(self.costs, kept)
            total += training_flops(forward, context.examples, task.fit.epochs)
        if task.probe is not None:
            scored = min(task.probe.batch_size, context.examples) * task.probe.batches
            total += training_flops(forward_flops(self.costs, None), scored, 1)
        return total
