"""The work of one client: receive -> fit -> probe -> evaluate -> reply. Used by simulations and deployed sites.

It is the reference that every faster executor must match.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import MASK, THETA, ClientContext, ClientTask, Moment, Probe, TrainLoss, Work
from ssfl.core.cost import LayerCost, forward_flops, layer_costs, training_flops
from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch, FlatNet
from ssfl.core.optim import FitSpec
from ssfl.core.rng import stream
from ssfl.core.tensor_roles import cast_floats
from ssfl.engine.client.batch_order import BatchOrder, SeededOrder
from ssfl.engine.client.data_source import DataSource, input_dtype
from ssfl.engine.client.errors import EngineError, check_finite, check_finite_scores, errors_named, place_of
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.own_loss import own_loss_gradient
from ssfl.engine.client.step import local_step_, sgd
from ssfl.engine.client.visit import Computed, begin_visit, end_visit
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.compaction import Plan, compacted, live_channels, training_plan, winograd_weights
from ssfl.engine.compute.device import EVALUATION_BATCH_ON_DEVICE, layer_draws, on_device
from ssfl.engine.compute.example_rules import ExampleRules, doubled, example_rules, joined_last
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.wire.stack import WireStack

T = TypeVar("T")

VALIDATION = "_validation"
"""Suffix of the names of tallies on held-out rows."""
EVALUATION_BATCH = 32
"""Batch size of evaluation on a CPU: as fast as 256 within 5 %, with an eighth of the memory."""


LoneExample = Literal["join", "drop"]


def mean_losses(losses: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> TrainLoss | None:
    """Mean losses over examples, from each epoch's losses and examples per step; None without any step."""
    if not any(map(len, counts)):
        return None
    sums = [
        sum(v * n for v, n in zip(e.tolist(), c, strict=True)) for e, c in zip(losses, counts, strict=True)
    ]
    examples = [sum(c) for c in counts]
    return TrainLoss(sums[-1] / max(examples[-1], 1), sum(sums) / max(sum(examples), 1))


def _continue() -> None:
    """Never cancelled."""


class Watch(Protocol):
    """Observes every local step of a client."""

    def before(self, epoch: int, step: int, batch: Batch, theta: Tensor, work: Work) -> None:
        """Called before a step from theta [P]."""
        ...

    def after(self, loss: Tensor) -> None:
        """Called with the loss, before the update."""
        ...


def _judged(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cross_entropy(logits, y, reduction="none"), logits.argmax(1) == y, y


@dataclass
class ClientRunner:
    """One network and the data; runs any client's job."""

    module: nn.Module
    federation: DataSource
    tasks: Mapping[str, ClientTask]
    seed: int
    order: BatchOrder | None = None
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    compaction: bool = False
    """Whether to skip arithmetic with zero weights (`compaction.py`): the same results except for the order of sums."""
    wire: WireStack | None = None
    """The transforms between algorithm and wire; None: none."""
    check_cancelled: Callable[[], None] = _continue
    """Called before every minibatch; raises Cancelled if the work was cancelled (`threads.py`)."""
    watch: Watch | None = None
    """Observes every local step (`diagnosis.py`); None: no observer."""
    lone_example: LoneExample = "join"
    """What to do with a last minibatch of one example if the network needs two: join it to the previous, or drop it."""
    rules: ExampleRules | None = None
    """How the network treats the examples of a minibatch; None: it is determined here."""

    def __post_init__(self) -> None:
        cast_floats(self.module, self.arithmetic.dtype, self.arithmetic.device)
        self.layout = Layout.of(self.module)
        self.wire_stack = self.wire or WireStack(self.layout, self.seed)
        self.input_dtype = input_dtype(self.federation)
        shape = self.federation.input_shape
        self.costs: tuple[LayerCost, ...] = layer_costs(self.module, shape, self.input_dtype)
        self.example_rules: ExampleRules = self.rules or example_rules(self.module, shape, self.input_dtype)
        self.rules = self.example_rules  # a copy of this runner does not determine them again
        self.batch_order: BatchOrder = self.order or SeededOrder(self.seed)
        self._flat: dict[int, FlatModule] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flat": {}}

    def cancelled_by(self, check_cancelled: Callable[[], None]) -> ClientRunner:
        """A runner that shares the network and its flat memory; the two must not run at the same time."""
        other = replace(self, check_cancelled=check_cancelled)
        other._flat = self._flat
        return other

    def flat(self, task: ClientTask | None = None) -> FlatModule:
        """The network, prepared once for each task, with flat memory."""
        key = 0 if task is None or task.prepare is None else id(task)
        if key not in self._flat:
            # Prepare a copy: with two flat memories of one module, the first would have no effect.
            prepare = None if task is None else task.prepare
            module = self.module if prepare is None else prepare(copy.deepcopy(self.module))
            self._flat[key] = FlatModule(module, self.layout, self.arithmetic.compiled)
        return self._flat[key]

    @property
    def model_bytes(self) -> int:
        """Bytes of one copy of weights and statistics."""
        return self.layout.size * self.arithmetic.dtype.itemsize

    def context(self, job: ClientJob) -> ClientContext:
        """The client's context: its number, clock, seed, layout and examples."""
        client = job.client
        return ClientContext(client, job.clock, self.seed, self.layout, self.federation.examples(client))

    def run(self, job: ClientJob) -> Outcome:
        """Do all work of a job. Raises ClientError (names the failed step) or DivergedError (a loss is not finite)."""
        context = self.context(job)
        with errors_named(place_of(context, job.phase)):
            return self._run_visit(job, context)

    def _run_visit(self, job: ClientJob, context: ClientContext) -> Outcome:
        start = time.perf_counter()
        task = self.tasks[job.phase]
        visit = begin_visit(job, task, context, self.wire_stack)
        work = on_device(visit.received, self.arithmetic.device, task)
        tallies = self.tallies(task, "received", work, context)
        loss: TrainLoss | None = None
        if task.fit is not None:
            loss = self.fit(task, task.fit, work, context)
            check_finite(place_of(context, job.phase), loss)
        tallies |= self.tallies(task, "trained", work, context)
        probed = self.probe(task, task.probe, work, context).cpu() if task.probe is not None else None
        check_finite_scores(place_of(context, job.phase), probed)
        flops = self.flops(task, work, context)
        computed = Computed(work, probed, loss, tallies)
        return end_visit(visit, computed, flops, time.perf_counter() - start)

    # ── fit ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def fit(self, task: ClientTask, spec: FitSpec, work: Work, context: ClientContext) -> TrainLoss | None:
        """Local epochs of SGD; writes the result to work[THETA]. Returns the mean losses; None without any minibatch.

        Random layers (dropout) use a stream named by client and round.
        """
        seed = stream(self.seed, "layers", context.client, context.clock.round).initial_seed()
        winograd = self.arithmetic.winograd
        flat = self.flat(task)
        module = flat.module
        plan: Plan = {}
        if self.compaction:
            uses_winograd = winograd_weights(module) if winograd else ()
            plan = training_plan(task, work[THETA], work, self.layout, uses_winograd)
        layers = self.arithmetic.layers(module, flat.places if task.sees_theta else None)
        with layer_draws(self.arithmetic.device, seed), compacted(module, plan, winograd), layers:
            losses, counts = self.train(task, spec, work, context)
        return mean_losses(losses, counts)

    def train(
        self, task: ClientTask, spec: FitSpec, work: Work, context: ClientContext
    ) -> tuple[list[Tensor], list[list[int]]]:
        """The local epochs of `fit`. Returns each epoch's losses and numbers of examples per step.

        Losses [steps] stay on the device, so that training does not wait for it.
        """
        flat = self.flat(task)
        flat.load(work[THETA])
        flat.set_training(True)
        trained = flat.trained
        gradient_of = self._plain_gradient if task.sees_theta else self._own_gradient
        velocity = torch.zeros_like(flat.gradient) if spec.momentum else None
        epoch_losses: list[Tensor] = []
        epoch_counts: list[list[int]] = []
        for epoch in range(spec.epochs):
            update = sgd(spec, spec.schedule(context.clock.round, epoch))
            losses: list[Tensor] = []
            counts: list[int] = []
            for step, batch in enumerate(self.train_batches(context, epoch, spec.batch_size)):
                if self.watch is not None:
                    self.watch.before(epoch, step, batch, flat.theta, work)
                loss = gradient_of(task, flat, work, batch)
                if self.watch is not None:
                    self.watch.after(loss)
                with torch.no_grad():
                    local_step_(task, trained, flat.gradient, velocity, work, update, flat.unused)
                losses.append(loss)
                counts.append(len(batch[1]))
            epoch_losses.append(torch.stack(losses) if losses else flat.theta.new_zeros(0))
            epoch_counts.append(counts)
        work[THETA] = flat.result()
        return epoch_losses, epoch_counts

    def _plain_gradient(self, task: ClientTask, flat: FlatModule, work: Work, batch: Batch) -> Tensor:
        """Mean cross-entropy; writes its gradient to `flat.gradient`, with autograd through the module."""
        with self.arithmetic.autocast():
            logits = flat.forward(batch[0])
        loss = cross_entropy(logits.to(self.arithmetic.dtype), batch[1])
        torch.autograd.backward(loss)
        flat.take_gradient()
        return loss.detach()

    def _own_gradient(self, task: ClientTask, flat: FlatModule, work: Work, batch: Batch) -> Tensor:
        """The method's own loss; writes its gradient to `flat.gradient`."""
        return own_loss_gradient(task, flat, work, batch, self.arithmetic.autocast())

    def train_batches(self, context: ClientContext, epoch: int, batch_size: int) -> Iterator[Batch]:
        """The minibatches of one local epoch, augmented with the stream of (client, round, epoch).

        Raises EngineError if every minibatch has one example and the network (BatchNorm) does not train on one.
        """
        if batch_size == 1 and self.example_rules.two_in_training:
            raise EngineError(
                "batch size 1: a layer of this network (BatchNorm) does not train on one example"
            )
        client, round_ = context.client, context.clock.round
        order = self.batch_order.epoch(client, round_, epoch, context.examples)
        generator = stream(self.seed, "augment", client, round_, epoch)
        batches = map(self.to_compute, self.federation.train_batches(client, order, batch_size, generator))
        return (
            joined_last(batches, self.lone_example == "drop")
            if self.example_rules.two_in_training
            else batches
        )

    def to_compute(self, batch: Batch) -> Batch:
        """A batch in the type and memory format of the computation."""
        self.check_cancelled()
        return self.arithmetic.batch(batch)

    @property
    def evaluation_batch(self) -> int:
        """Batch size of evaluation; larger on a device, to use it fully."""
        return EVALUATION_BATCH if self.arithmetic.device.type == "cpu" else EVALUATION_BATCH_ON_DEVICE

    # ── probe ────────────────────────────────────────────────────────────────────────────────────────────────────
    def probe(self, task: ClientTask, probe: Probe, work: Work, context: ClientContext) -> Tensor:
        """The mean saliency [T] over `probe.batches` minibatches at work[THETA].

        Without autocast: the mask does not depend on `engine.precision` (bf16).
        """
        flat = self.flat(task)
        flat.set_training(probe.saliency.training_mode)
        net = FlatNet(flat.module, self.layout)
        total = torch.zeros_like(flat.gradient)
        with self.arithmetic.layers(flat.module):
            for batch in self.probe_batches(probe, context):
                total += probe.saliency.score(net, work[THETA], batch)
        return total / probe.batches

    def probe_batches(self, probe: Probe, context: ClientContext) -> Iterator[Batch]:
        """The scoring minibatches: the client's training data, shuffled and augmented as in training."""
        client, round_ = context.client, context.clock.round
        for index in range(probe.batches):
            order = self.batch_order.probe(client, round_, index, context.examples, probe.batch_size)
            generator = stream(self.seed, "augment-probe", client, round_, index)
            batches = self.federation.train_batches(client, order, probe.batch_size, generator)
            x, y = self.to_compute(next(iter(batches)))
            # The mean over an example and its copy equals the example's value.
            yield (torch.cat([x, x]), torch.cat([y, y])) if len(y) == 1 and self._needs_two(probe) else (x, y)

    def _needs_two(self, probe: Probe) -> bool:
        return (
            self.example_rules.two_in_training
            if probe.saliency.training_mode
            else self.example_rules.two_in_evaluation
        )

    # ── evaluation and cost ──────────────────────────────────────────────────────────────────────────────────────
    def tallies(self, task: ClientTask, when: Moment, work: Work, context: ClientContext) -> dict[str, Tally]:
        """Tests of the client's model on its own rows at this moment, if the task requests them."""
        if when not in task.evaluate:
            return {}
        size = self.layout.trained_size
        theta = work[THETA]
        if task.effective_weights is not None:
            theta = torch.cat([task.seen(theta[:size], work), theta[size:]])
        return self.split_tallies(when, context.client, *self.predict(theta, context.client, task))

    def split_tallies(
        self, when: str, client: int, losses: Tensor, hits: Tensor, labels: Tensor
    ) -> dict[str, Tally]:
        """A client's results [B] as tallies: `when` for its test split, `when` + VALIDATION for held-out rows."""
        tests, classes = len(self.federation.test_parts[client]), self.federation.arrays.num_classes
        found = {when: Tally.of(losses[:tests], hits[:tests], labels[:tests], classes)}
        if len(labels) > tests:
            found[when + VALIDATION] = Tally.of(losses[tests:], hits[tests:], labels[tests:], classes)
        return found

    def evaluate(self, theta: Tensor, client: int | None, task: ClientTask | None = None) -> Tally:
        """Test effective weights theta [P] on a client's test split, or (None) on the whole test set."""
        source = self.federation
        tests = len(source.arrays.test_y if client is None else source.test_parts[client])
        losses, hits, labels = (found[:tests] for found in self.predict(theta, client, task))
        return Tally.of(losses, hits, labels, source.arrays.num_classes)

    def predict(
        self, theta: Tensor, client: int | None, task: ClientTask | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, hits and labels [B] of `test_batches(client)`, in host memory."""
        return self._predict(theta, self.federation.test_batches(client, self.evaluation_batch), task)

    def predict_rows(self, theta: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Losses and hits of the evaluation rows first..last-1."""
        batches = self.federation.test_rows(first, last, self.evaluation_batch)
        return self._predict(theta, batches, None)[:2]

    def probabilities(self, theta: Tensor) -> Tensor:
        """Class probabilities of all evaluation rows under weights [P]: [rows, classes], in host memory."""
        batches = self.federation.test_batches(None, self.evaluation_batch)
        found = self._evaluated(theta, batches, None, lambda logits, y: logits.softmax(1).cpu())
        return torch.cat(found)

    def _predict(
        self, theta: Tensor, batches: Iterator[Batch], task: ClientTask | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = self._evaluated(theta, batches, task, _judged)
        if not found:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
        losses, hits, labels = zip(*found)
        return torch.cat(losses).cpu(), torch.cat(hits).cpu(), torch.cat(labels).cpu()

    def _evaluated(
        self,
        theta: Tensor,
        batches: Iterator[Batch],
        task: ClientTask | None,
        read: Callable[[Tensor, Tensor], T],
    ) -> list[T]:
        """`read(logits, labels)` of each batch, in evaluation mode under weights [P]."""
        flat = self.flat(task)
        flat.load(theta)
        flat.set_training(False)
        winograd = self.arithmetic.winograd
        plan: Plan = {}
        if self.compaction:
            uses_winograd = winograd_weights(flat.module) if winograd else ()
            plan = live_channels(self.layout, theta, uses_winograd=uses_winograd)
        layers = self.arithmetic.layers(flat.module)
        found = []
        with torch.inference_mode(), compacted(flat.module, plan, winograd), layers:
            for x, y in map(self.to_compute, batches):
                lone = len(y) == 1 and self.example_rules.two_in_evaluation
                with self.arithmetic.autocast():
                    logits = doubled(flat.module, x) if lone else flat.module(x)
                found.append(read(logits.to(self.arithmetic.dtype), y))
        return found

    def flops(self, task: ClientTask, work: Work, context: ClientContext) -> int:
        """Training FLOPs of this job: 3 forward passes per example; with a mask, kept weights only."""
        total = 0
        if task.fit is not None:
            kept = {} if task.mask_stage is None else self.layout.kept_per_layer(work[MASK])
            counted = {cost.name: kept[cost.name] for cost in self.costs if cost.name in kept}
            forward = forward_flops(self.costs, counted)
            total += training_flops(forward, context.examples, task.fit.epochs)
        if task.probe is not None:
            scored = min(task.probe.batch_size, context.examples) * task.probe.batches
            total += training_flops(forward_flops(self.costs, None), scored, 1)
        return total
