"""The exchange of a deployment: send a plan, accept the answers that arrive in time, continue with a quorum.

Replies are yielded in the order of clients, so that sums have the same bits as in a simulation. A reply that arrives
before its turn is stored as bytes, a large one in an unlinked file: memory does not grow with the number of sites.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from ssfl.algorithms.base import ClientReply, ClientTask, RoundPlan
from ssfl.core.layout import Layout
from ssfl.core.payloads import Payload, Traffic
from ssfl.core.reading import WireError
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import messages
from ssfl.deploy.protocol.messages import LACKS, HeldBroadcast
from ssfl.deploy.protocol.payloads import (
    ExpectedReply,
    digest_of,
    from_bytes,
    is_broadcast,
    is_scoring,
)
from ssfl.deploy.server.outgoing_work import OutgoingWork
from ssfl.deploy.server.pending_replies import PendingReplies
from ssfl.deploy.server.published import Published
from ssfl.deploy.server.registered_site import LATE, WorkOutcome
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.coded_exchange import ServerCoder
from ssfl.engine.state.serialization import KEPT_CHECKPOINTS
from ssfl.errors import UserError
from ssfl.wire.stack import WireStack

FAST_POLL_SECONDS = 0.05
SLOW_POLL_SECONDS = 0.25
FAST_FOR_SECONDS = 5.0
"""Seconds after the start of an exchange in which answers are polled often; each poll costs CPU time on the server."""


class QuorumError(UserError):
    """Fewer sites than the quorum answered within patience_seconds: the run stops and can be resumed."""


@dataclass
class ExchangeSummary:
    """Counts and duration of one exchange."""

    asked: int = 0
    answered: int = 0
    missing: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass
class _ExchangeState:
    """One exchange in progress."""

    plan: RoundPlan
    meter: Meter
    outgoing: OutgoingWork
    waiting: set[int]
    """Clients whose answer has not arrived and is still expected."""
    arrived: PendingReplies
    under_way: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)
    accepted: int = 0


@final
class FleetExchange:
    """The loop's `Exchange` over a registry of sites.

    number: exchanges done so far in this run. broadcasts: the broadcasts that every client must hold, by digest.
    Checkpoints contain both (`driver.py`). checkpoints: the exchanges after which the existing checkpoints were saved;
    0 is the start of the run. write: calls a function that writes a file; it may wait for free space.
    """

    def __init__(
        self,
        registry: SiteRegistry,
        tasks: Mapping[str, ClientTask],
        wire: WireStack,
        settings: DeploySettings,
        log: EventLog,
        scratch: Path | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.registry, self.tasks, self.settings, self.log = registry, tasks, settings, log
        self.coder = ServerCoder(wire)
        self.layout: Layout = wire.layout
        self.published = Published(None if scratch is None else scratch / "published")
        self.number = 0
        self.checkpoints: tuple[int, ...] = (0,)
        self.broadcasts: dict[str, HeldBroadcast] = {}
        self.summary = ExchangeSummary()
        self.on_broadcast: Callable[[HeldBroadcast], None] = lambda broadcast: None
        self.write: Callable[[Callable[[], object]], object] = lambda write: write()
        self._scratch, self._now, self._sleep = scratch, now, sleep

    # ── Exchange ─────────────────────────────────────────────────────────────────────────────────────────────────
    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        """Yields decoded replies in the order of clients. Raises QuorumError when too few sites answer in time.

        A reply that cannot be decoded is refused when it arrives, so that it does not count towards the quorum.
        """
        plan = self.coder.begin(plan)
        self.number += 1
        self.summary = ExchangeSummary(asked=len(plan.instructions))
        self.registry.fields |= {"round": plan.clock.round, "phase": plan.phase}
        outgoing = OutgoingWork(
            plan,
            self.registry,
            self.number,
            self.checkpoints,
            self.layout,
            self.broadcasts,
            self.published,
        )
        arrived = PendingReplies(self._scratch, self._log_no_file)
        state = _ExchangeState(plan, meter, outgoing, set(outgoing.inboxes), arrived)
        start = self._now()
        order = sorted(state.outgoing.inboxes)
        replied: list[int] = []
        at = 0
        for finished in self._steps(state, start):
            while at < len(order) and (order[at] in state.arrived or order[at] in state.given_up):
                client, at = order[at], at + 1
                if client in state.arrived:
                    replied.append(client)
                    yield self._reply(state, client)
            if finished:
                break
        self.summary.seconds = self._now() - start
        self.summary.answered = state.accepted
        self.summary.missing = tuple(sorted(state.given_up))
        self.coder.end(replied)
        self._finish_exchange(state)

    def client_memories(self) -> ClientMemories:
        """The codec states of the server; the clients' states stay at the sites."""
        return self.coder.memory()

    def saved(self) -> None:
        """A checkpoint of the exchanges so far has been saved."""
        self.checkpoints = (*self.checkpoints, self.number)[-KEPT_CHECKPOINTS:]
        self.published.saved()

    def restore(self, memories: ClientMemories) -> None:
        """Restore what `client_memories` returned."""
        self.coder.restored(memories)

    # ── one exchange ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _steps(self, state: _ExchangeState, start: float) -> Iterator[bool]:
        """Send and poll; yields False after every change, and True when the exchange has ended."""
        settings = self.settings
        quorum = self._quorum(state)
        deadline = start + settings.deadline_seconds
        patience = start + max(settings.patience_seconds, settings.deadline_seconds)
        while True:
            if self._now() < deadline:
                self._send(state, max(1.0, deadline - self._now()))
            changed = self._handle_outcomes(state)
            late = self._now() >= deadline and not self.registry.working  # answers may wait to be received
            unreachable = not changed and all(map(self._is_unreachable, state.waiting))
            enough = state.accepted >= quorum
            if not state.waiting or (enough and (late or unreachable)):
                self._give_up(state, LATE if late else "not connected")
                yield True
                return
            if late:
                if self._now() >= patience:
                    raise QuorumError(self._quorum_message(state, quorum))
                self._log_waiting(state, quorum)
                deadline = self._now() + settings.deadline_seconds
                state.under_way.clear()
            if changed:
                yield False
            else:
                self._sleep(self._pause(start))

    def _quorum(self, state: _ExchangeState) -> int:
        """Number of answers needed."""
        task, asked = self.tasks[state.plan.phase], len(state.outgoing.inboxes)
        if is_scoring(task) and self.settings.scoring == "all":
            return asked
        return self.settings.quorum_of(asked)

    def _send(self, state: _ExchangeState, seconds: float) -> None:
        """Send work to every client that is free and has not received it."""
        to = sorted(c for c in state.waiting - state.under_way if self.registry.ready(c))
        if not to:
            return
        for works, traffic in state.outgoing.groups(to):
            failed = self.registry.send_work(works, seconds)
            for client in traffic.keys() - set(failed):
                state.under_way.add(client)
                for sender, size in traffic[client]:
                    state.meter.sent(sender, client, size)
            works.clear()  # free the memory before the next ones are made
        if state.waiting <= state.under_way:
            state.outgoing.encoded.clear()  # made again where a message must be repeated

    def _handle_outcomes(self, state: _ExchangeState) -> bool:
        """Process the answers since the last call; returns whether there were any. Keeps no reply while it waits."""
        outcomes = self.registry.poll()
        for outcome in outcomes:
            self._handle_outcome(state, outcome)
        return bool(outcomes)

    def _handle_outcome(self, state: _ExchangeState, outcome: WorkOutcome) -> None:
        """Process an answer to work of this exchange or of an earlier one."""
        client, done = outcome.client, outcome.done
        if done is None:
            if client in state.waiting and client in state.under_way:
                self._failed(state, outcome)
            return
        site = self.registry.clients.get(client)
        if site is None:
            return
        site.holds = set(done.holds)
        if done.exchange != self.number or client not in state.waiting:
            text = (
                f"client {client}: an answer to exchange {done.exchange} in exchange {self.number}; dropped"
            )
            self.log.warning(
                "stale_answer", text, **self.registry.fields, client=client, exchange=done.exchange
            )
            return
        payload, reason = self._read(state, client, done, site.joined)
        if payload is None:
            self.registry.refuse_answer(site, reason)
            self._stop_waiting_for(state, client, reason)
            return
        if state.plan.publish:
            self.write(lambda: self.published.put(client, self.number, done.payload))
        state.waiting.discard(client)
        is_next = not any(waiting < client for waiting in state.waiting)
        state.arrived.put(client, done.report, payload if is_next else done.payload)
        state.accepted += 1

    def _read(
        self, state: _ExchangeState, client: int, done: messages.Done, joined: messages.Joined | None
    ) -> tuple[Payload | None, str]:
        """Returns the decoded payload, or None and the reason why it is refused."""
        if done.run != self.registry.run or done.client != client:
            return None, f"answers as client {done.client} of run {done.run:.40}"
        if joined is not None and done.report.examples != joined.examples:
            return None, f"reports {done.report.examples} examples, joined with {joined.examples}"
        if any(t.examples > joined.test_examples for t in done.report.tallies.values() if joined is not None):
            return None, "reports more test examples than it joined with"
        try:
            received = from_bytes(done.payload, self.layout)
            expected = self._expected(state.plan, client)
            if (reason := expected.refusal_before_decoding(received)) is not None:
                return None, reason
            payload = self.coder.read(client, received)
            if (reason := expected.refusal(payload)) is not None:
                return None, reason
        except WireError as error:
            return None, str(error)
        except Exception as error:  # only this reply is lost, whether the reply or the server is at fault
            reason, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            text = f"client {client}: {reason}"
            self.log.error("reply_failed", text, **self.registry.fields, client=client, traceback=trace)
            return None, reason
        state.meter.received(client, Traffic.of(received))
        return payload, ""

    def _expected(self, plan: RoundPlan, client: int) -> ExpectedReply:
        """What this client's reply must contain."""
        sent = {name: part for name, part in self.coder.asked(client).items() if part.has_values}
        return ExpectedReply(client, sent, self.tasks[plan.phase], plan.timed, self.layout)

    def _reply(self, state: _ExchangeState, client: int) -> ClientReply:
        """The reply of the next client in order; it is removed from the pending replies."""
        arrived = state.arrived.take(client)
        payload = arrived.payload
        if isinstance(payload, bytes):
            payload = self.coder.read(client, from_bytes(payload, self.layout))
        return ClientReply(client, payload, arrived.report)

    def _log_no_file(self, error: OSError) -> None:
        self.log.warning("reply_in_memory", f"{error}: the reply stays in memory", **self.registry.fields)

    def _failed(self, state: _ExchangeState, outcome: WorkOutcome) -> None:
        client, reason = outcome.client, outcome.reason
        state.under_way.discard(client)
        site = self.registry.clients.get(client)
        if reason.startswith(LACKS) and site is not None:
            site.holds -= set(reason.removeprefix(LACKS).split())
            text = f"client {client} has lost its masks; they are sent again"
            self.log.warning("broadcast_again", text, **self.registry.fields, client=client)
            return
        self.log.warning("no_answer", f"client {client}: {reason}", **self.registry.fields, client=client)
        if not outcome.gone and reason != LATE and site is not None and site.joined is not None:
            self._stop_waiting_for(
                state, client, reason
            )  # the site reports a failure: repeating would not help

    def _is_unreachable(self, client: int) -> bool:
        """Whether the client has been disconnected for at least `return_seconds`."""
        seconds = self.registry.away_seconds(client)
        return seconds is not None and seconds >= self.settings.return_seconds

    def _stop_waiting_for(self, state: _ExchangeState, client: int, reason: str) -> None:
        state.waiting.discard(client)
        state.given_up[client] = reason

    def _give_up(self, state: _ExchangeState, reason: str) -> None:
        for client in sorted(state.waiting):
            self._stop_waiting_for(state, client, self.registry.refusal_of(client) or reason)

    def _finish_exchange(self, state: _ExchangeState) -> None:
        """Log the missing clients, and keep a broadcast for the clients that did not receive it."""
        plan = state.plan
        if state.given_up:
            missing = ", ".join(f"client {c} ({state.given_up[c]})" for c in sorted(state.given_up))
            counted = f"{state.accepted} of {self.summary.asked} answered"
            text = f"{plan.phase}, round {plan.clock.round}: {counted}; without {missing}"
            if is_scoring(self.tasks[plan.phase]):
                text += "; the weights of the others are renormalised"
            self.log.warning(
                "missing_replies",
                text,
                **self.registry.fields,
                missing=sorted(state.given_up),
            )
        if not is_broadcast(self.tasks[plan.phase]):
            return
        sent = {state.outgoing.blobs(client)[0] for client in state.outgoing.inboxes}
        if len(sent) != 1:
            return
        (blobs,) = sent
        broadcast = HeldBroadcast(digest_of(blobs), plan.phase, plan.clock.round, blobs)
        self.broadcasts[broadcast.digest] = broadcast
        self.on_broadcast(broadcast)

    def _pause(self, start: float) -> float:
        fast = self.registry.working and self._now() - start < FAST_FOR_SECONDS
        return FAST_POLL_SECONDS if fast else SLOW_POLL_SECONDS

    def _log_waiting(self, state: _ExchangeState, quorum: int) -> None:
        text = f"{state.accepted} of {self.summary.asked} answered, {quorum} are needed; waiting for more"
        self.log.warning("below_quorum", text, **self.registry.fields)

    def _quorum_message(self, state: _ExchangeState, quorum: int) -> str:
        return (
            f"round {state.plan.clock.round} ({state.plan.phase}): {state.accepted} of {self.summary.asked} sites "
            f"answered within {self.settings.patience_seconds:g} s, {quorum} are needed (deploy.quorum="
            f"{self.settings.quorum:g}); the last checkpoint is kept"
        )
