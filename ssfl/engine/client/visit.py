"""The beginning and end of a client's work, the same in every executor: receive first, reply last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientReport,
    ClientState,
    ClientTask,
    TrainLoss,
    Work,
)
from ssfl.core.metrics import Tally
from ssfl.engine.client.errors import DivergedError, place_of
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.compute.device import on_host
from ssfl.wire.stack import NOTHING_RECEIVED, OpenedInbox, WireStack, task_state, wire_state
from ssfl.wire.value_codec import NotFiniteError


@final
@dataclass(frozen=True)
class Visit:
    """A job after `receive`."""

    job: ClientJob
    task: ClientTask
    context: ClientContext
    wire: WireStack
    opened: OpenedInbox
    state_before: ClientState
    """The task's state before the job."""
    wire_state_before: ClientState
    """The transforms' state before the job."""
    state: ClientState
    """The task's state after `receive`."""
    received: Work
    """The received tensors, in host memory, read-only."""


@final
@dataclass(frozen=True)
class Computed:
    """The results of the executor between receive and reply."""

    work: Work
    """The tensors after training, on the device of the computation."""
    probed: Tensor | None
    """Mean saliency [T], in host memory."""
    loss: TrainLoss | None
    tallies: Mapping[str, Tally]


def begin_visit(job: ClientJob, task: ClientTask, context: ClientContext, wire: WireStack) -> Visit:
    """Load the client's state, resolve and decode its inbox, call `receive`. Raises WireError."""
    whole = job.memory.load().state
    state_before, wire_state_before = task_state(whole), wire_state(whole)
    inbox = job.received()
    round_ = job.clock.round
    opened = wire.open_inbox(inbox, wire_state_before, job.client, job.phase, round_)
    work, state = task.receive(opened.payloads, state_before, context)
    return Visit(job, task, context, wire, opened, state_before, wire_state_before, state, work)


def end_visit(visit: Visit, computed: Computed, train_flops: int, wall_seconds: float) -> Outcome:
    """Call `reply` and encode the payload. Raises DivergedError if values cannot be coded."""
    context, job = visit.context, visit.job
    work = on_host(computed.work, visit.received, visit.task)
    payload, state = visit.task.reply(work, computed.probed, visit.state, context)
    received = NOTHING_RECEIVED if job.publish else visit.opened.received
    try:
        payload, kept = visit.wire.send_reply(
            payload, received, visit.opened.state, job.client, job.phase, job.clock.round
        )
    except NotFiniteError as error:
        raise DivergedError(place_of(context, job.phase), f"the reply contains {error}") from error
    report = ClientReport(context.examples, computed.loss, computed.tallies, train_flops, wall_seconds)
    same = state is visit.state_before and kept is visit.wire_state_before
    return Outcome(ClientReply(context.client, payload, report), None if same else {**state, **kept})
