"""A fleet without a network: real trainers behind the transport's contract, a clock and faults of the tests' own.

Nothing waits: time passes when the exchange sleeps. A site's fault is a function from (message, honest answer) to what
arrives instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.deploy.federation.roster import Member
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server.exchange import FleetExchange
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings
from ssfl.deploy.site.kept_states import KeptStates
from ssfl.deploy.site.sessions import Session
from ssfl.deploy.site.trainer import Trainer
from ssfl.deploy.transport.port import Answer, Failure, Message, SiteInfo
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.loop import RoundLoop
from ssfl.wire.stack import WireStack
from tests.contract.table import ALGORITHMS, ROUNDS, SIZES
from tests.support.rigs import Event, FloatData, Rig, float_data, make_rig, tiny_net

RUN = "run-1"
FLOAT64 = Arithmetic(dtype=torch.float64)

Lost = None
"""What arrives when nothing does."""
Fault = Callable[[Message, Message | str], Message | str | Failure | None]


def honest(message: Message, answer: Message | str) -> Message | str:
    """No fault."""
    return answer


@dataclass
class FakeSite:
    """One site's process."""

    trainer: Trainer
    key: str
    fault: Fault = honest
    seconds: float = 0.0
    """How long an answer takes."""
    online: bool = True
    session: str = "1"
    served: list[messages.AnyMessage] = field(default_factory=list)


@dataclass
class FakeFleet:
    """`ServerPort` over trainers of this process; nodes are numbered from 100."""

    sites_by_node: dict[int, FakeSite] = field(default_factory=dict)
    time: float = 0.0
    tickets: dict[str, tuple[int, Message, float, float]] = field(default_factory=dict)
    sent: list[tuple[int, messages.AnyMessage]] = field(default_factory=list)
    count: int = 0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    # ── ServerPort ───────────────────────────────────────────────────────────────────────────────────────────────
    def sites(self) -> tuple[SiteInfo, ...]:
        there = ((n, s) for n, s in sorted(self.sites_by_node.items()) if s.online)
        return tuple(SiteInfo(node, site.key, "", site.session) for node, site in there)

    def send(
        self, outgoing: Sequence[tuple[int, Message]], deadline_seconds: float
    ) -> tuple[str | None, ...]:
        out: list[str | None] = []
        for node, message in outgoing:
            self.sent.append((node, message_bytes.unpack(message)))
            if node not in self.sites_by_node:
                out.append(None)
                continue
            self.count += 1
            ticket = f"t{self.count}"
            seconds = self.sites_by_node[node].seconds
            self.tickets[ticket] = (node, message, self.time + seconds, self.time + deadline_seconds)
            out.append(ticket)
        return tuple(out)

    def receive(self, tickets: Sequence[str], max_body_bytes: int) -> tuple[Answer | Failure, ...]:
        self.time += 0.001
        found: list[Answer | Failure] = []
        for ticket in tickets:
            node, message, ready, expires = self.tickets[ticket]
            site = self.sites_by_node.get(node)
            if self.time > expires:
                del self.tickets[ticket]
                found.append(Failure(ticket, "expired", "gone"))
            elif site is None or not site.online:
                del self.tickets[ticket]
                found.append(Failure(ticket, "offline", "Node Unavailable"))
            elif self.time >= ready and (arrived := self._served(site, ticket, message, max_body_bytes)):
                del self.tickets[ticket]
                found.append(arrived)
        return tuple(found)

    def _served(self, site: FakeSite, ticket: str, message: Message, most: int) -> Answer | Failure | None:
        site.served.append(message_bytes.unpack(message))
        answer = site.fault(message, site.trainer.handle(message))
        if answer is None:
            self.tickets[ticket] = (*self.tickets[ticket][:2], float("inf"), self.tickets[ticket][3])
            return None
        if isinstance(answer, Failure):
            return Failure(ticket, answer.kind, answer.reason)
        if isinstance(answer, str):
            return Failure(ticket, "failed", answer)
        if len(answer.body) > most:
            return Failure(ticket, "refused", f"more than {most} bytes")
        return Answer(ticket, answer)


@dataclass
class Bench:
    """A deployed run set up by hand."""

    fleet: FakeFleet
    registry: SiteRegistry
    exchange: FleetExchange
    loop: RoundLoop
    events: list[Event]
    log_lines: list[dict[str, Any]]
    theta: Any
    data: FloatData
    joins: Mapping[int, messages.Join]

    @property
    def algorithm(self) -> Algorithm[Any]:
        return self.loop.algorithm

    def site(self, client: int) -> FakeSite:
        return self.fleet.sites_by_node[100 + client]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log_lines if line["event"] == event]

    def join_all(self) -> None:
        for _ in range(50):
            self.registry.poll()
            self.fleet.sleep(0.5)

    def run(self, rounds: int) -> Any:
        return self.loop.run(self.loop.start(self.theta, rounds))


def trainer_of(
    name: str,
    net: str,
    data: FloatData,
    client: int,
    folder: Path | None = None,
    wire: WireStack | None = None,
) -> Trainer:
    """A site's trainer for a row of the contract table."""

    def build(join: messages.Join) -> Session:
        method, module = ALGORITHMS[name](), tiny_net(net)
        runner = ClientRunner(module, data, method.tasks, 7, None, FLOAT64, wire=wire)
        joined = messages.Joined(
            join.run,
            client,
            data.examples(client),
            len(data.test[client][1]),
            data.num_classes,
            data.input_shape,
            runner.layout.digest.hex(),
            "classes",
        )
        return Session(join, method, runner, KeptStates(folder, join.run), joined, name)

    return Trainer(build, EventLog(f"site {client}", None, None), client)


def make_bench(
    name: str,
    net: str = "group",
    sizes: Sequence[int] = SIZES,
    settings: DeploySettings | None = None,
    folder: Path | None = None,
    wire: WireStack | None = None,
) -> Bench:
    """A server over a fake fleet of as many sites as there are sizes."""
    settings = settings or DeploySettings(deadline_seconds=30, patience_seconds=300, quorum=0.5)
    data = float_data(sizes)
    rig = make_rig(ALGORITHMS[name](), data, tiny_net(net))
    fleet = FakeFleet()
    members = []
    for client in range(len(sizes)):
        kept = None if folder is None else folder / str(client)
        fleet.sites_by_node[100 + client] = FakeSite(
            trainer_of(name, net, data, client, kept, wire), f"key-{client}"
        )
        members.append(Member(client, f"site-{client}", f"key-{client}"))
    lines: list[dict[str, Any]] = []
    log = listed_log(lines)
    registry = SiteRegistry(fleet, members, RUN, log, fleet.now, fleet.sleep)
    registry.max_body_bytes = 10_000_000
    joins = {client: messages.Join(RUN, client, "") for client in range(len(sizes))}
    registry.join_of = joins.__getitem__
    digest = rig.context.layout.digest.hex()
    registry.check = lambda client, joined: (
        None if joined.layout == digest else f"its network has layout {joined.layout}"
    )
    both = WireStack(rig.context.layout, 7) if wire is None else wire
    exchange = FleetExchange(
        registry, rig.algorithm.tasks, both, settings, log, folder, fleet.now, fleet.sleep
    )
    events: list[Event] = []
    context = ServerContext(rig.context.layout, rig.context.example_counts, 7)
    loop = RoundLoop(rig.algorithm, context, exchange, CentralTest(rig.executor, data), events.append, _free)
    return Bench(fleet, registry, exchange, loop, events, lines, rig.theta, data, joins)


def weights_by_exchange(rig: Rig | Bench) -> list[Tensor]:
    """The global model after each exchange."""
    seen: list[Tensor] = []
    context = rig.loop.context

    def save(progress: object) -> float:
        weights = rig.algorithm.weights_to_evaluate(progress.state, context)  # type: ignore[attr-defined]
        seen.append(torch.zeros(0) if weights is None else weights.clone())
        return 0.0

    rig.loop.save = save
    rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    return seen


def _free(progress: object) -> float:
    return 0.0


def listed_log(lines: list[dict[str, Any]]) -> Any:
    """A log whose lines can be read."""

    class Listed:
        def info(self, event: str, text: str = "", **fields: Any) -> None:
            lines.append({"level": "info", "event": event, "text": text, **fields})

        def warning(self, event: str, text: str = "", **fields: Any) -> None:
            lines.append({"level": "warning", "event": event, "text": text, **fields})

        def error(self, event: str, text: str = "", **fields: Any) -> None:
            lines.append({"level": "error", "event": event, "text": text, **fields})

    return Listed()
