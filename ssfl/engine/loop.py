"""The one loop of simulation and deployment: plan, exchange, aggregate, measure, record, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch import Tensor

from ssfl.algorithms.base import Algorithm, ClientReply, Clock, RoundPlan, ServerContext
from ssfl.core.layout import layer_densities
from ssfl.core.masks import empty_layers
from ssfl.engine.accounting.imbalance import Imbalance
from ssfl.engine.accounting.ledger import ClientLink, Ledger, Meter, exchange_fields
from ssfl.engine.accounting.scoreboard import Scoreboard
from ssfl.engine.central_test import ClientExamination, Examination
from ssfl.engine.client.errors import DivergedError, EngineError
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.client.runner import VALIDATION
from ssfl.engine.state.progress import Progress

ATTEMPTS = 3
"""Attempts at a phase that is not a training round; the run stops if none has a reply."""


MOST_LISTED = 1000
"""Maximum number of clients whose accuracies are in every evaluation, not only in the last one."""
LONG_LISTS = ("client_accuracy", "client_validation_accuracy")


class Exchange(Protocol):
    """Sends a plan to the clients and returns their replies; gives access to client states for checkpoints."""

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterable[ClientReply]:
        """Yields replies of any subset of the plan's clients, sorted by client, as they become ready.

        The meter must count every message that was sent, answered or not, and every reply.
        """
        ...

    def client_memories(self) -> ClientMemories:
        """The clients' states, if they are stored here."""
        ...

    def restore(self, memories: ClientMemories) -> None:
        """Restore client states after a resume."""
        ...


class Examiner(Protocol):
    """Tests models on data that is available here."""

    def examine(self, theta: Tensor) -> Examination | None:
        """Test a global model theta [P] on the central test set; None if there is none."""
        ...

    def examine_for_clients(self, theta: Tensor) -> ClientExamination:
        """Test the initial model theta [P] on the clients' own rows, if they are available here."""
        ...


class NoReplyError(EngineError):
    """No client answered after several attempts, in a phase that the run needs."""


Emit = Callable[[Mapping[str, Any]], None]
Save = Callable[[Progress], float]
BeforePlan = Callable[[Any], None]


@dataclass
class RoundLoop:
    """A run: an algorithm, an exchange, an examiner and observers.

    emit: receives every event (docs/metrics.md). save: called after every exchange; returns the seconds it took.
    before_plan: called with the state before each plan is made; it may replace `context` and `algorithm`.
    progress: the state after the last finished exchange, also after an exception; a run can be resumed from it.
    """

    algorithm: Algorithm[Any]
    context: ServerContext
    exchange: Exchange
    examiner: Examiner
    emit: Emit
    save: Save
    test_every: int = 1
    link: ClientLink | None = None
    """The link of every client, to compute the time that messages would take; None: not computed."""
    progress: Progress | None = None
    before_plan: BeforePlan = lambda state: None

    def start(self, theta: Tensor, rounds: int) -> Progress:
        """Returns the progress before the first exchange, from the initial model theta [P]."""
        found, clients = self.examiner.examine_for_clients(theta), len(self.context.clients)
        state = self.algorithm.initialize(theta, self.context)
        board = Scoreboard.initial(found.test, clients)
        held = None if found.validation is None else Scoreboard.initial(found.validation, clients)
        self.progress = Progress(state, Clock(1, rounds), board, Ledger(), validation=held)
        return self.progress

    def run(self, progress: Progress) -> Progress:
        """Run until the algorithm has no further plan. Returns the last progress."""
        self.progress = progress
        plan = self._next_plan(progress.state, progress.clock)
        while plan is not None:
            progress, plan = self.step(progress, plan)
        return progress

    def step(self, progress: Progress, plan: RoundPlan) -> tuple[Progress, RoundPlan | None]:
        """Do one exchange. Returns the new progress and the plan of the next exchange (None after the last).

        An error of the next plan is raised after the exchange is recorded and saved, so that nothing is lost.
        """
        start = time.perf_counter()
        meter, state = self._exchanged(progress.state, plan)
        aggregated = time.perf_counter()
        board, held = progress.scoreboard, progress.validation
        if board is not None:
            board = board.updated(meter.tallies("trained"))
        if held is not None:
            held = held.updated(meter.tallies("trained" + VALIDATION))
        clock = replace(progress.clock, round=progress.clock.round + plan.timed)
        theta = self.algorithm.weights_to_evaluate(state, self.context)
        _check_finite(theta, plan)
        event = exchange_fields(plan, meter, self.link) | self._mask_fields(progress, state, theta)
        self._warn_of_missing(meter, plan)
        following, fault = self._attempted_plan(state, clock)
        closing = following is None and fault is None
        if self._due(plan, closing):
            fields = self._evaluation_fields(theta, board, held)
            last = closing or plan.clock.round == plan.clock.total
            event |= fields if last else _shortened(fields)
        evaluated = time.perf_counter()
        memories = self.exchange.client_memories()
        progress = Progress(state, clock, board, progress.ledger.plus(event), memories, held)
        event |= {
            "training_seconds": meter.waited_seconds,
            "aggregation_seconds": aggregated - start - meter.waited_seconds,
            "evaluation_seconds": evaluated - aggregated,
            "checkpoint_seconds": progress.ledger.checkpoint_seconds,
        }
        event["wall_seconds"] = time.perf_counter() - start
        self.emit(event)
        saving = self.save(progress)
        progress = replace(progress, ledger=replace(progress.ledger, checkpoint_seconds=saving))
        self.progress = progress
        if fault is not None:
            raise fault
        return progress, following

    def _next_plan(self, state: Any, clock: Clock) -> RoundPlan | None:
        self.before_plan(state)
        return self.algorithm.configure_round(state, clock, self.context)

    def _attempted_plan(self, state: Any, clock: Clock) -> tuple[RoundPlan | None, Exception | None]:
        """The next plan, and the error of making it."""
        try:
            return self._next_plan(state, clock), None
        except Exception as error:
            return None, error

    def _exchanged(self, state: Any, plan: RoundPlan) -> tuple[Meter, Any]:
        """Do an exchange and aggregate. Returns its meter and the new state; the same state if no client answered.

        A phase that is not a training round is then repeated, `ATTEMPTS` times in all. Raises NoReplyError after that.
        """
        meter = Meter(len(plan.instructions))
        for _ in range(1 if plan.timed else ATTEMPTS):
            replies = meter.watch(self.exchange(plan, meter))
            some = _unless_empty(replies)
            if some is not None:
                state = self.algorithm.aggregate(state, plan, some, self.context)
                for _ in some:
                    pass  # replies that the algorithm did not read must be received too
                return meter, state
        if not plan.timed:
            raise NoReplyError(f"phase {plan.phase}: no client answered, {ATTEMPTS} times in a row")
        return meter, state

    def _warn_of_missing(self, meter: Meter, plan: RoundPlan) -> None:
        answered = len(meter.reports)
        if answered < meter.asked and not plan.timed:
            counts = f"{answered} of {meter.asked} clients answered"
            message = f"phase {plan.phase}: {counts}; the run continues without the others"
            self.emit({"event": "warning", "message": message})

    def _due(self, plan: RoundPlan, closing: bool) -> bool:
        if not plan.timed:
            return closing
        return plan.clock.round % self.test_every == 0 or plan.clock.round == plan.clock.total

    def _evaluation_fields(
        self, theta: Tensor | None, board: Scoreboard | None, held: Scoreboard | None
    ) -> dict[str, Any]:
        fields: dict[str, Any] = board.fields() if board is not None else {}
        if held is not None:
            fields |= held.validation_fields()
        return fields | global_fields(None if theta is None else self.examiner.examine(theta))

    def _mask_fields(self, before: Progress, after: Any, theta: Tensor | None) -> dict[str, Any]:
        """The density of the mask or of the global model, and the density of each layer if the mask is new.

        A mask that the method starts with is new in the first exchange.
        """
        mask = self.algorithm.global_mask(after, self.context)
        layout = self.context.layout
        if mask is None:
            if theta is None:
                return {"density": None}
            return {"density": layout.count_prunable(theta) / max(layout.prunable_size, 1)}
        fields: dict[str, Any] = {}
        first = before.ledger == Ledger()
        old = None if first else self.algorithm.global_mask(before.state, self.context)
        if old is not mask and (old is None or not bool(old.equal(mask))):
            bits = layout.take_prunable(mask)
            empty = empty_layers(bits, layout.prunable_segments)
            fields = {"layer_density": dict(layer_densities(layout, mask)), "empty_layers": empty}
            if empty:
                self.emit({"event": "warning", "message": empty_layer_warning(empty)})
        kept = sum(layout.kept_per_layer(mask).values())
        return fields | {"density": kept / max(layout.prunable_size, 1)}


def global_fields(found: Examination | None) -> dict[str, Any]:
    """Accuracy, loss and per-class accuracy of the global model on the central test set, and on held-out rows."""
    if found is None:
        return {"global_accuracy": None, "global_loss": None}
    fields = {
        "global_accuracy": found.test.accuracy,
        "global_loss": found.test.loss,
        "global_class_accuracy": found.test.class_accuracy,
    }
    fields |= _imbalance_fields("global_", found.imbalance)
    if found.validation is None:
        return fields
    held = found.validation
    fields |= {"global_validation_accuracy": held.accuracy, "global_validation_loss": held.loss}
    return fields | _imbalance_fields("global_validation_", found.validation_imbalance)


def _imbalance_fields(prefix: str, found: Imbalance | None) -> dict[str, Any]:
    return {} if found is None else {prefix + name: value for name, value in asdict(found).items()}


def _shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without long lists, which only the last evaluation records."""
    return {k: v for k, v in fields.items() if k not in LONG_LISTS or len(v) <= MOST_LISTED}


def _unless_empty(replies: Iterator[ClientReply]) -> Iterator[ClientReply] | None:
    """The same replies, or None if there are none; keeps no reference to the first one."""
    first = list(islice(replies, 1))
    return chain(_taken(first), replies) if first else None


def _taken(items: list[ClientReply]) -> Iterator[ClientReply]:
    while items:
        yield items.pop(0)


def _check_finite(theta: Tensor | None, plan: RoundPlan) -> None:
    # aminmax propagates NaN and needs no temporary vector of the model's size.
    if theta is not None and not bool(torch.stack(torch.aminmax(theta)).isfinite().all()):
        raise DivergedError(
            None, f"the global model is not finite after round {plan.clock.round} ({plan.phase})"
        )


def empty_layer_warning(names: Sequence[str]) -> str:
    """The warning if a mask empties whole layers."""
    return (
        f"the mask keeps no weight of {', '.join(names)}: no signal passes these layers; "
        "raise model.dense_ratio or set algorithm.params.min_layer_density"
    )
