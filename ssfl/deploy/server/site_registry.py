"""The server's registry of sites: which are connected, which client each one is, whether it is free, what it holds.

A site answers one message at a time, so nothing is sent to a site that has not answered the last one: the message
would only wait there and be stale when it is read. A site that missed a deadline gets a small ping; its pong says that
it is free again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

from ssfl.deploy.federation.roster import Member
from ssfl.deploy.log import EventLog, one_line
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server.membership import Membership
from ssfl.deploy.server.registered_site import (
    LATE,
    RETRY_SECONDS,
    PendingMessage,
    Purpose,
    Site,
    WorkOutcome,
)
from ssfl.deploy.transport.port import Answer, Failure, ServerPort

SITES_POLL_SECONDS = 1.0
"""Seconds between two queries of the connected sites."""
FINISH_POLL_SECONDS = 0.05
"""Seconds between two queries of the answers to a Finish."""
PING_SECONDS = 600.0
"""Time to live of a ping or a join, in seconds: a busy site answers when it has finished its work."""
SILENT_SECONDS = 30.0
"""After so long without any answer, one that has missed its deadline is given up although the port has not said so."""
JoinOf = Callable[[int], messages.Join]
Check = Callable[[int, messages.Joined], str | None]


@final
class SiteRegistry:
    """All sites of one run.

    members: the roster; empty: every site may take part. join_of: the join message for a client. check: why a client's
    Joined cannot be accepted, or None. on_update: called about once a second with the number of joined sites that are
    connected. fields: of every event in the log: the run, and the exchange in progress.
    """

    def __init__(
        self,
        port: ServerPort,
        members: Sequence[Member],
        run: str,
        log: EventLog,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.port, self.run, self.log, self.now, self._sleep = port, run, log, now, sleep
        self.join_of: JoinOf = lambda client: messages.Join(run, client, "")
        self.check: Check = lambda client, joined: None
        self.on_update: Callable[[int], None] = lambda live: None
        self.fields: dict[str, Any] = {"run": run}
        self.membership = Membership(members, log, self.fields)
        self.max_body_bytes = 1_000_000
        self._sites: dict[int, Site] = {}
        self._pending: dict[str, PendingMessage] = {}
        self._started_at, self._updated_at = now(), float("-inf")
        self._answered_at = now()
        self._lost: list[WorkOutcome] = []

    # ── status ───────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def clients(self) -> dict[int, Site]:
        """Client -> the site that has joined this run as that client; it may be disconnected."""
        return {s.client: s for s in self._sites.values() if s.client is not None and s.joined is not None}

    @property
    def live(self) -> int:
        """Number of joined sites that are connected."""
        return sum(site.present for site in self.clients.values())

    @property
    def refusals(self) -> list[str]:
        """Why sites that are connected have not joined."""
        return [
            f"{self._name(s)}: {s.refusal}"
            for s in self._sites.values()
            if s.present and s.joined is None and s.refusal
        ]

    def refusal_of(self, client: int) -> str:
        """Why this client, which is connected, is refused or refuses; empty if it is not."""
        sites = [s for s in self._sites.values() if s.client == client and s.present]
        return next((s.refusal for s in sites if s.refusal and not s.expected), "")

    @property
    def working(self) -> bool:
        """Whether answers to work are expected."""
        return any(pending.purpose == "work" for pending in self._pending.values())

    def ready(self, client: int) -> bool:
        """Whether work may be sent to this client now."""
        site = self.clients.get(client)
        return site is not None and site.ready

    def away(self, client: int) -> bool:
        """Whether this client is disconnected or excluded, or its join was refused."""
        return self.away_seconds(client) is not None

    def away_seconds(self, client: int) -> float | None:
        """For how long this client has been disconnected; infinite if it is excluded, or its join was refused.

        None for a client that is connected.

        A client that has not been seen counts from the start of this process: after a crash, sites are still
        connecting.
        """
        sites = [s for s in self._sites.values() if s.client == client]
        if any(s.expected for s in sites):
            return None
        if any(s.present for s in sites):
            return float("inf")
        since = max((s.lost_at for s in sites), default=self._started_at)
        return self.now() - since

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────
    def send_work(self, works: Sequence[messages.Work], deadline_seconds: float) -> tuple[int, ...]:
        """Send work to clients that are `ready`, in one upload. Returns the clients that could not be reached."""
        sites = [self.clients[w.client] for w in works]
        failed = self._send(
            [(s, work) for s, work in zip(sites, works, strict=True)], "work", deadline_seconds
        )
        return tuple(s.client for s in failed if s.client is not None)

    def finish(self, seconds: float) -> None:
        """Notify the sites that the run has finished; wait for their confirmations at most `seconds`."""
        notices = [(s, messages.Finish(self.run)) for s in self.clients.values() if s.present]
        self._send(notices, "finish", max(seconds, 1.0))
        end = self.now() + seconds
        while any(t.purpose == "finish" for t in self._pending.values()) and self.now() < end:
            self.poll()
            self._sleep(FINISH_POLL_SECONDS)

    def _send(
        self, outgoing: Sequence[tuple[Site, messages.AnyMessage]], purpose: Purpose, seconds: float
    ) -> list[Site]:
        if not outgoing:
            return []
        bodies: dict[tuple[int, ...], bytes] = {}
        tickets = self.port.send([(s.node, message_bytes.pack(m, bodies)) for s, m in outgoing], seconds)
        failed = []
        for (site, _), ticket in zip(outgoing, tickets, strict=True):
            if ticket is None:
                self._lose(site)
                failed.append(site)
            else:
                site.free = False
                self._pending[ticket] = PendingMessage(site, purpose, self.now() + seconds)
        return failed

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────
    def poll(self) -> list[WorkOutcome]:
        """Query sites and answers once. Returns the results of work since the last call."""
        if self.now() - self._updated_at >= SITES_POLL_SECONDS:
            self._update_sites()
        outcomes, answered = [], dict[str, Site]()
        for found in self.port.receive(tuple(self._pending), self.max_body_bytes):
            pending = self._pending.pop(found.ticket, None)
            self._answered_at = self.now()
            if pending is not None:
                answered[found.ticket] = pending.site
                outcomes += self._handle_answer(pending, found)
            elif (site := answered.get(found.ticket)) is not None:
                text = f"{self._name(site)}: a second answer to one message; dropped"
                self.log.warning("stale_answer", text, **self.fields, client=site.client)
        lost, self._lost = self._lost, []
        return outcomes + self._expired() + lost

    def _update_sites(self) -> None:
        """Record which sites are connected; ping those that are not known to be free."""
        self._updated_at = self.now()
        self._read_roster()
        here = {info.node: info for info in self.port.sites()}
        for site in self._sites.values():
            if site.node in here:
                site.present = True
            elif site.present:
                self.log.warning("site_away", self._name(site), **self.fields, client=site.client)
                self._lose(site)
        for info in here.values():
            known = self._sites.get(info.node)
            if known is None and self.membership.admits(info):
                member = self.membership.get(info.key)
                client = None if member is None else member.client
                self._sites[info.node] = Site(info.node, info.key, info.name, info.session, client)
            elif known is not None and known.session != info.session:
                self._restarted(known, info.session)
        waiting_nodes = {pending.site.node for pending in self._pending.values()}
        due = [
            s
            for s in self._sites.values()
            if s.present
            and s.node not in waiting_nodes
            and not s.ready
            and not s.excluded
            and self.now() >= s.next_try
        ]
        self._send([(s, messages.Ping(self.run)) for s in due], "ping", PING_SECONDS)
        self.on_update(self.live)

    def _read_roster(self) -> None:
        """Refuse sites whose key is no longer on the roster from now on; accept new keys."""
        changed = self.membership.update()
        for site in [s for s in self._sites.values() if s.key in changed]:
            self._drop_pending(site, "its key has been replaced or revoked")
            del self._sites[site.node]

    def _drop_pending(self, site: Site, reason: str) -> None:
        """Do not wait for the answers to this site's messages any longer."""
        for ticket in [t for t, pending in self._pending.items() if pending.site is site]:
            pending = self._pending.pop(ticket)
            if pending.purpose == "work" and site.client is not None:
                self._lost.append(WorkOutcome(site.client, None, reason, gone=True))

    def _restarted(self, site: Site, session: str) -> None:
        """The site has reconnected: unanswered messages to its previous process are lost; ask for its state again.

        An operator may have corrected what was refused, so the count of refused answers starts at 0 again.
        """
        self._drop_pending(site, "restarted while it worked")
        site.session, site.free, site.next_try, site.pause = session, False, 0.0, RETRY_SECONDS
        site.refused_answers, site.refusal = 0, ""

    def _lose(self, site: Site) -> None:
        site.present, site.lost_at = False, self.now()

    def _handle_answer(self, pending: PendingMessage, found: Answer | Failure) -> list[WorkOutcome]:
        site = pending.site
        if isinstance(found, Failure):
            return self._failed(pending, replace(found, reason=one_line(found.reason)))
        try:
            message = message_bytes.unpack(found.message)
        except messages.MessageError as error:
            return self._refuse(pending, str(error))
        site.present = True
        if isinstance(message, messages.Done) and pending.purpose == "work":
            site.free = True
            assert site.client is not None
            return [WorkOutcome(site.client, message)]
        if isinstance(message, messages.Pong) and pending.purpose == "ping":
            self._pong(site, message)
        elif isinstance(message, messages.Joined) and pending.purpose == "join":
            self._joined(site, message)
        elif not (isinstance(message, messages.Finished) and pending.purpose == "finish"):
            return self._refuse(pending, f"a {type(message).__name__} in answer to a {pending.purpose}")
        return []

    def _failed(self, pending: PendingMessage, failure: Failure) -> list[WorkOutcome]:
        site = pending.site
        gone = failure.kind == "offline"
        if gone:
            self._lose(site)
        if failure.kind == "refused":
            return self._refuse(pending, failure.reason)
        # A site that reports a failure is free for the next message; after an expired message this is not known.
        site.free = failure.kind == "failed" and site.joined is not None and pending.purpose == "work"
        self._schedule_retry(site)
        if pending.purpose != "work":
            if failure.kind == "failed":
                site.refusal = failure.reason
                self.log.warning(
                    "site_refuses", f"{self._name(site)}: {failure.reason}", **self.fields, client=site.client
                )
            return []
        if failure.kind == "failed" and messages.JOIN_FIRST in failure.reason:
            site.joined, site.free = None, False
            site.next_try = 0.0
        assert site.client is not None
        reason = LATE if failure.kind == "expired" else failure.reason
        return [WorkOutcome(site.client, None, reason, gone)]

    def _refuse(self, pending: PendingMessage, reason: str) -> list[WorkOutcome]:
        """An answer that cannot be read, or that contradicts what is known."""
        site, reason = pending.site, one_line(reason)
        self.refuse_answer(site, reason)
        self._schedule_retry(site)
        if pending.purpose == "work" and site.client is not None:
            site.free = True
            return [WorkOutcome(site.client, None, reason)]
        return []

    def refuse_answer(self, site: Site, reason: str) -> None:
        """Count a refused answer; after MAX_REFUSED_ANSWERS the site is excluded until it is restarted."""
        site.refused_answers += 1
        site.refusal = reason = one_line(reason)
        self._log_refusal(site, f"{reason}; excluded until it is restarted" if site.excluded else reason)

    def _refuse_join(self, site: Site, reason: str) -> None:
        """Refuse a site and ask it again at increasing intervals: an operator may correct the cause."""
        site.joined, site.refusal = None, one_line(reason)
        self._schedule_retry(site)
        self._log_refusal(site, site.refusal)

    def _log_refusal(self, site: Site, reason: str) -> None:
        text = f"{self._name(site)}: {reason}"
        self.log.warning("answer_refused", text, **self.fields, client=site.client, node=site.node)

    def _expired(self) -> list[WorkOutcome]:
        """Messages that the port should have ended: answers may have arrived in time, and wait to be received."""
        over = self.now() - SILENT_SECONDS
        expired = [
            t for t, pending in self._pending.items() if over > max(pending.expires, self._answered_at)
        ]
        outcomes = []
        for ticket in expired:
            pending = self._pending.pop(ticket)
            self._schedule_retry(pending.site)
            if pending.purpose == "work" and pending.site.client is not None:
                outcomes.append(WorkOutcome(pending.site.client, None, LATE))
        return outcomes

    # ── joining ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _pong(self, site: Site, pong: messages.Pong) -> None:
        client = self._client_of(site, pong)
        if client is None:
            return
        site.client = client
        if site.joined is not None and pong.run == self.run:
            site.free, site.pause = True, RETRY_SECONDS
            return
        site.joined = None
        self._send([(site, self.join_of(client))], "join", PING_SECONDS)

    def _client_of(self, site: Site, pong: messages.Pong) -> int | None:
        """Which client a node is: by its registered key, else the number that it asks for, if that is free."""
        if (member := self.membership.get(site.key)) is not None:
            return member.client
        joining = [pending.site for pending in self._pending.values() if pending.purpose == "join"]
        holders = [s for s in (*joining, *self.clients.values()) if s is not site]
        taken = {s.client: s for s in holders}
        wish = pong.wish if pong.wish >= 0 else min(set(range(len(taken) + 1)) - taken.keys())
        other = taken.get(wish)
        if other is None or not other.present or (other.joined is not None and not other.free):
            return wish
        self._refuse_join(site, f"asks to be client {wish}, which is already {self._name(other)}")
        return None

    def _joined(self, site: Site, joined: messages.Joined) -> None:
        assert site.client is not None
        reason = self._join_refusal_reason(site.client, joined)
        if reason is not None:
            self._refuse_join(site, reason)
            return
        for other in [s for s in self._sites.values() if s.client == site.client and s is not site]:
            self._drop_pending(other, "another process of this site has joined")
            other.client = None  # an earlier process of this site, with another key or node number
            other.joined, other.free = None, False
            other.next_try = self.now() + PING_SECONDS
        site.joined, site.free, site.holds = joined, True, set(joined.standing)
        site.refusal, site.pause = "", RETRY_SECONDS
        self.log.info(
            "site_joined",
            f"{self._name(site)}: {joined.examples} examples, {joined.test_examples} to test on",
            **self.fields,
            client=site.client,
            node=site.node,
            examples=joined.examples,
        )

    def _join_refusal_reason(self, client: int, joined: messages.Joined) -> str | None:
        if joined.protocol != messages.PROTOCOL:
            return f"uses protocol {joined.protocol}, this server {messages.PROTOCOL}: update the older side"
        if joined.run != self.run:
            return f"answers for run {joined.run:.40}, not for this one"
        if joined.client != client:
            return f"joins as client {joined.client}, but its key is registered for client {client}"
        return self.check(client, joined)

    def _schedule_retry(self, site: Site) -> None:
        site.next_try = self.now() + site.pause
        site.pause = min(60.0, 2 * site.pause)

    def _name(self, site: Site) -> str:
        member = self.membership.get(site.key)
        name = member.name if member is not None else site.name or f"node {site.node}"
        return name if site.client is None else f"{name} (client {site.client})"
