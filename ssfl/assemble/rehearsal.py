"""The first exchanges of a run without training: clients receive, their weights change at random, and they reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor

from ssfl.algorithms.base import Algorithm, Clock, RoundPlan, ServerContext
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.executors.untrained import UntrainedExecutor
from ssfl.engine.simulator import Simulator
from ssfl.wire.stack import WireStack


@final
@dataclass(frozen=True)
class Rehearsed:
    """One exchange without training."""

    plan: RoundPlan
    meter: Meter
    before: Any
    """The server's state when it made the plan."""
    after: Any
    exchange: CodedExchange


def _whole(plan: RoundPlan | None) -> RoundPlan | None:
    """The plan as it is."""
    return plan


def rehearse(
    algorithm: Algorithm[Any],
    theta: Tensor,
    context: ServerContext,
    wire: WireStack,
    rounds: int,
    shortened: Callable[[RoundPlan], RoundPlan | None] = _whole,
) -> Iterator[Rehearsed]:
    """The exchanges of a run of `rounds` rounds, each made when it is asked for.

    shortened: plan -> the plan to try, perhaps for fewer clients; None: try no more.
    """
    executor = UntrainedExecutor(algorithm.tasks, context.layout, wire, context.example_counts, context.seed)
    exchange = CodedExchange(Simulator(executor), wire)
    clock = Clock(1, rounds)
    state = algorithm.initialize(theta, context)
    while (plan := algorithm.configure_round(state, clock, context)) and (plan := shortened(plan)):
        meter = Meter(len(plan.instructions))
        before = state
        replies = meter.watch(exchange(plan, meter))
        if plan.instructions:  # as in a run, which does not aggregate if nobody answers
            state = algorithm.aggregate(state, plan, replies, context)
        for _ in replies:
            pass  # replies that the algorithm did not read must be received too
        clock = replace(clock, round=clock.round + plan.timed)
        yield Rehearsed(plan, meter, before, state, exchange)
