"""The one loop of simulation and deployment: plan, exchange, aggregate, measure, record, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ssfl.algorithms.base import Algorithm, ClientReply, ClientState, Clock, RoundPlan, ServerContext
from ssfl.core.layout import layer_densities
from ssfl.core.masks import empty_layers
from ssfl.core.metrics import Tally
from ssfl.engine.jobs import DivergedError
from ssfl.engine.ledger import Ledger, Meter, exchange_fields
from ssfl.engine.scoreboard import Scoreboard


class Exchange(Protocol):
    """Carries a plan to the clients and their replies back; knows what clients remember (for checkpoints)."""

    def __call__(self, plan: RoundPlan) -> Iterable[ClientReply]:
        """Replies of a non-empty subset of the plan's clients, sorted by client, as they become ready."""
        ...

    def client_states(self) -> Mapping[int, ClientState]:
        """What the clients remember, where this side holds it."""
        ...

    def restore(self, states: Mapping[int, ClientState]) -> None:
        """Hand remembered states back after a resume."""
        ...


class Examiner(Protocol):
    """Tests a global model [P] centrally."""

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Per-example losses and hits [B] on the whole test set."""
        ...


@dataclass(frozen=True)
class TestSet:
    """The test labels and who owns which row."""

    __test__ = False
    labels: Tensor
    num_classes: int
    parts: Sequence[Tensor]


@dataclass(frozen=True)
class Progress:
    """Everything that a resume needs, between two exchanges."""

    state: Any
    clock: Clock
    scoreboard: Scoreboard | None
    ledger: Ledger
    client_states: Mapping[int, ClientState] = field(default_factory=dict)


Emit = Callable[[Mapping[str, Any]], None]
Save = Callable[[Progress], float]


@dataclass
class Federation:
    """A run: an algorithm, an exchange, a way to test, and who listens.

    `emit` gets every event (docs/metrics.md); `save` is offered every finished exchange and returns the seconds it
    took. `progress` is always the last finished exchange, also after an exception: what can be resumed from.
    """

    algorithm: Algorithm[Any]
    context: ServerContext
    exchange: Exchange
    examiner: Examiner
    test_set: TestSet
    emit: Emit
    save: Save
    test_every: int = 1
    progress: Progress | None = None

    def start(self, theta: Tensor, rounds: int) -> Progress:
        """The progress before the first exchange, from the initial model theta [P]."""
        losses, hits = self.examiner.predict(theta)
        state = self.algorithm.initialize(theta, self.context)
        board = Scoreboard.initial(losses, hits, self.test_set.parts)
        self.progress = Progress(state, Clock(1, rounds), board, Ledger())
        return self.progress

    def run(self, progress: Progress) -> Progress:
        """Until the algorithm has no further plan."""
        self.progress = progress
        while True:
            plan = self.algorithm.configure_round(progress.state, progress.clock, self.context)
            if plan is None:
                return progress
            progress = self.step(progress, plan)
            self.progress = progress

    def step(self, progress: Progress, plan: RoundPlan) -> Progress:
        """One exchange and what follows from it."""
        start = time.perf_counter()
        meter = Meter()
        replies = meter.watch(self.exchange(plan))
        state = self.algorithm.aggregate(progress.state, plan, replies, self.context)
        for _ in replies:
            pass  # acknowledgements that the algorithm did not read; all must arrive
        self._check(state, plan)
        aggregated = time.perf_counter()
        board = progress.scoreboard
        if board is not None:
            board = board.updated(meter.tallies("trained"))
        event = exchange_fields(plan, meter)
        event |= self._mask_fields(progress.state, state)
        clock = replace(progress.clock, round=progress.clock.round + plan.timed)
        closing = self.algorithm.configure_round(state, clock, self.context) is None
        if self._due(plan, closing):
            event |= self._evaluation_fields(state, board)
        evaluated = time.perf_counter()
        progress = Progress(state, clock, board, progress.ledger.plus(event), self.exchange.client_states())
        event |= {
            "training_seconds": meter.waited_seconds,
            "aggregation_seconds": aggregated - start - meter.waited_seconds,
            "evaluation_seconds": evaluated - aggregated,
            "checkpoint_seconds": progress.ledger.checkpoint_seconds,
        }
        event["wall_seconds"] = time.perf_counter() - start
        self.emit(event)
        saving = self.save(progress)
        return replace(progress, ledger=replace(progress.ledger, checkpoint_seconds=saving))

    def _due(self, plan: RoundPlan, closing: bool) -> bool:
        if not plan.timed:
            return closing
        return plan.clock.round % self.test_every == 0 or plan.clock.round == plan.clock.total

    def _check(self, state: Any, plan: RoundPlan) -> None:
        theta = self.algorithm.weights_to_evaluate(state, self.context)
        # Extremes tell of NaN as well, and make no second vector as long as the model.
        if theta is not None and not bool(torch.stack(torch.aminmax(theta)).isfinite().all()):
            raise DivergedError(
                f"the global model is not finite after round {plan.clock.round} ({plan.phase}): "
                "lower optimizer.lr; the last checkpoint is kept"
            )

    def _evaluation_fields(self, state: Any, board: Scoreboard | None) -> dict[str, Any]:
        fields: dict[str, Any] = board.fields() if board is not None else {}
        theta = self.algorithm.weights_to_evaluate(state, self.context)
        if theta is None:
            return fields | {"global_accuracy": None, "global_loss": None}
        return fields | global_fields(*self.examiner.predict(theta), self.test_set)

    def _mask_fields(self, before: Any, after: Any) -> dict[str, Any]:
        """The density of the mask, or of the global model, and each layer's when the mask is new."""
        mask = self.algorithm.global_mask(after, self.context)
        layout = self.context.layout
        if mask is None:
            theta = self.algorithm.weights_to_evaluate(after, self.context)
            if theta is None:
                return {"density": None}
            kept = layout.count_prunable(theta)
            return {"density": kept / max(layout.prunable_size, 1)}
        fields: dict[str, Any] = {}
        old = self.algorithm.global_mask(before, self.context)
        if old is not mask and (old is None or not bool(old.equal(mask))):
            bits = layout.take_prunable(mask)
            empty = empty_layers(bits, layout.prunable_segments)
            fields = {"layer_density": dict(layer_densities(layout, mask)), "empty_layers": empty}
            if empty:
                self.emit({"event": "warning", "message": empty_layer_warning(empty)})
        kept = sum(layout.kept_per_layer(mask).values())
        return fields | {"density": kept / max(layout.prunable_size, 1)}


def global_fields(losses: Tensor, hits: Tensor, test_set: TestSet) -> dict[str, Any]:
    """Accuracy, loss and per-class accuracy of the global model on the whole test set."""
    tally = Tally.of(losses, hits, test_set.labels, test_set.num_classes)
    return {
        "global_accuracy": tally.accuracy,
        "global_loss": tally.loss,
        "global_class_accuracy": tally.class_accuracy,
    }


def empty_layer_warning(names: Sequence[str]) -> str:
    """What to do when a mask kills whole layers."""
    return (
        f"the mask keeps nothing of {', '.join(names)}: no signal passes there; "
        "raise model.dense_ratio or set algorithm.params.min_layer_density"
    )
