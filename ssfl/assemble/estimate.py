"""Estimates the bytes of a run before it starts, from its plans and messages with few clients and random replies."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from ssfl.algorithms.base import RoundPlan, ServerContext
from ssfl.assemble.build import RunSetup, algorithm_of, counting_notes, setup_of
from ssfl.assemble.checked_method import unchecked
from ssfl.assemble.communication import wire_of
from ssfl.assemble.loop import link_of
from ssfl.assemble.rehearsal import rehearse
from ssfl.config import PROFILES, CommunicationConfig, Config, cohort_size
from ssfl.core.payloads import SERVER, DenseValues
from ssfl.core.rng import stream
from ssfl.engine.accounting.ledger import ClientLink, Meter, dense_payload_bytes
from ssfl.report.tables.grid import draw
from ssfl.report.tables.units import size_text
from ssfl.wire.holdings import Held, Holdings, Known

FEW = 3
"""Clients of the trial run; messages of other clients would have the same size."""
ROUNDS = 2
"""Training rounds of the last phase in the trial; later rounds are assumed to have the same size."""
MOST_ROUNDS = 300
"""Rounds in which cohorts are drawn to estimate who holds a version; later rounds are like the last of them."""
MBITS, ROUND_TRIP_MS = 20.0, 50.0
"""A home's uplink, used if the configuration has no link."""


@final
@dataclass(frozen=True)
class PhaseTraffic:
    """One phase of a run: mean bytes of a client's messages in one exchange, and how often it happens."""

    phase: str
    timed: bool
    exchanges: int
    clients: float
    """Clients in one exchange."""
    down_bytes: float
    up_bytes: float
    """Of a client that answers."""
    peer_bytes: float

    @property
    def client_bytes(self) -> float:
        """To and from one client in one exchange, if it answers."""
        return self.down_bytes + self.up_bytes + self.peer_bytes

    def run_bytes(self, answering: float) -> float:
        """Bytes of all clients in all exchanges, of which a share of `answering` (0-1) answer."""
        each = self.down_bytes + answering * self.up_bytes + self.peer_bytes
        return each * self.clients * self.exchanges


@final
@dataclass(frozen=True)
class Tried:
    """One exchange of the trial run."""

    plan: RoundPlan
    meter: Meter
    whole: RoundPlan
    """The plan of this exchange in the run with all clients."""

    @property
    def peer_bytes(self) -> float:
        """Bytes from other clients, per client in the run with all clients, who have more neighbours."""
        ours, theirs = _models_heard(self.plan), _models_heard(self.whole)
        return self.meter.peer_bytes / max(len(self.plan.instructions), 1) * (theirs / ours if ours else 0)


def show_estimate(config: Config) -> int:
    """Print the bytes that the run sends with every profile, and with the configured settings if they differ."""
    setup = setup_of(config, pixels=False)
    rows = {name: traffic_of(setup, one) for name, one in _variants(config).items()}
    for note in counting_notes(config, setup.config):
        print(f"ssfl: {note}", file=sys.stderr)
    print(estimate_text(setup.config, setup, rows), end="")
    return 0


def _variants(config: Config) -> Mapping[str, CommunicationConfig]:
    asked = config.communication
    plain: dict[str, CommunicationConfig] = {name: CommunicationConfig(profile=name) for name in PROFILES}
    watched = {
        "measure": asked.measure,
        "link_mbits": asked.link_mbits,
        "link_round_trip_ms": asked.link_round_trip_ms,
    }
    chosen = replace(asked, **{name: getattr(CommunicationConfig(), name) for name in watched})
    return plain if chosen in plain.values() else {**plain, "as set": chosen}


def traffic_of(setup: RunSetup, communication: CommunicationConfig) -> Sequence[PhaseTraffic]:
    """The phases of a run with these codecs, in order."""
    if not communication.downlink_versions:
        return _traffic(setup, communication)
    whole = _traffic(setup, replace(communication, downlink_versions=0))
    differences = {phase.phase: phase for phase in _traffic(setup, communication)}
    return [_mixed(one, differences.get(one.phase, one), setup, communication) for one in whole]


def _mixed(
    whole: PhaseTraffic, difference: PhaseTraffic, setup: RunSetup, communication: CommunicationConfig
) -> PhaseTraffic:
    """The mean message, if only those clients get differences that hold a version that the server remembers."""
    if not whole.timed:
        return whole
    clients, per_round = setup.federation.num_clients, round(whole.clients)
    share = share_of_differences(clients, per_round, whole.exchanges, communication.downlink_versions)
    return replace(whole, down_bytes=share * difference.down_bytes + (1 - share) * whole.down_bytes)


def share_of_differences(clients: int, per_round: int, rounds: int, versions: int) -> float:
    """The share of messages to clients that hold a remembered version, with cohorts drawn at random.

    Clients that get a difference decode other values than those that get them whole, so a round may add several
    versions. The record is the server's own, with versions that hold no values.
    """
    holdings, differences = Holdings(versions), 0
    generator = stream(0, "estimated cohorts")
    tried = min(rounds, MOST_ROUNDS)
    for _ in range(tried):
        cohort = sorted(torch.randperm(clients, generator=generator)[:per_round].tolist())
        made: dict[int, Held] = {}
        replied: dict[int, Held] = {}
        for client in cohort:
            held = holdings.of(client)
            differences += bool(held)
            key = id(held) if held else 0
            replied[client] = made.setdefault(key, {"": Known(DenseValues(torch.empty(0)), None)})
        holdings = holdings.after(cohort, replied)
    return differences / max(tried * per_round, 1)


def _traffic(setup: RunSetup, communication: CommunicationConfig) -> Sequence[PhaseTraffic]:
    """The phases of a run in which every client of the trial takes part in every round."""
    total = setup.config.training.comm_round
    config = replace(setup.config, communication=communication)
    tried = list(_tried(setup, config, min(total, _first_rounds(setup, config) + ROUNDS)))
    found: dict[str, list[Tried]] = {}
    for one in tried:
        found.setdefault(one.plan.phase, []).append(one)
    last = next((t.plan.phase for t in reversed(tried) if t.plan.timed), "")
    before = sum(t.plan.timed and t.plan.phase != last for t in tried)
    phases: list[PhaseTraffic] = []
    for phase, exchanges in found.items():
        usual = _phase(phase, exchanges[1:] or exchanges, total - before if phase == last else len(exchanges))
        phases += [
            *_first_contact(_phase(phase, exchanges[:1], 1), usual, setup.federation.num_clients),
            usual,
        ]
    return phases


def _first_contact(first: PhaseTraffic, usual: PhaseTraffic, clients: int) -> Iterator[PhaseTraffic]:
    """The extra bytes of a client's first exchange, if they are more than the variation of codecs.

    They count for the mean number of clients that cohorts drawn at random contact in all exchanges of the phase.
    """
    more = first.down_bytes - usual.down_bytes
    if more > usual.down_bytes / 2:
        contacted = clients * (1 - (1 - usual.clients / clients) ** usual.exchanges)
        yield PhaseTraffic(f"{usual.phase}, first time", False, 1, contacted, more, 0.0, 0.0)


def _first_rounds(setup: RunSetup, config: Config) -> int:
    """Training rounds before those of the last phase (warm-up), that is, before a mask is made."""
    algorithm = algorithm_of(config, setup.layout)
    return int(getattr(unchecked(algorithm), "mask_round", 0))


def _tried(setup: RunSetup, config: Config, rounds: int) -> Iterator[Tried]:
    """The run with `rounds` rounds and few clients, without training."""
    layout, seed = setup.layout, setup.context.seed
    few = min(FEW, setup.federation.num_clients)
    training = replace(
        config.training,
        comm_round=rounds,
        client_num_in_total=few,
        client_num_per_round=min(few, cohort_size(config)),
    )
    whole, wire = algorithm_of(config, layout), wire_of(config, layout)
    algorithm = algorithm_of(replace(config, training=training), layout)
    context = ServerContext(layout, dict.fromkeys(range(few), 1), seed)
    for one in rehearse(algorithm, setup.theta, context, wire, rounds):
        planned = whole.configure_round(one.before, one.plan.clock, setup.context)
        yield Tried(one.plan, one.meter, planned or one.plan)


def _models_heard(plan: RoundPlan) -> float:
    """Mean number of other clients' models in a client's inbox."""
    heard = [sum(m.sender != SERVER for m in i.inbox) for i in plan.instructions]
    return sum(heard) / max(len(heard), 1)


def _phase(phase: str, usual: Sequence[Tried], count: int) -> PhaseTraffic:
    """The mean of the tried exchanges, for `count` exchanges."""
    asked = max(sum(len(t.plan.instructions) for t in usual), 1)  # a method may plan a round without clients
    return PhaseTraffic(
        phase,
        usual[0].plan.timed,
        count,
        sum(len(t.whole.instructions) for t in usual) / len(usual),
        sum(t.meter.downlink_bytes for t in usual) / asked,
        sum(t.meter.uplink_bytes for t in usual) / asked,
        sum(t.peer_bytes for t in usual) / len(usual),
    )


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────
def estimate_text(config: Config, setup: RunSetup, rows: Mapping[str, Sequence[PhaseTraffic]]) -> str:
    """A table with phases and directions as rows, profiles as columns."""
    link = link_of(config) or ClientLink(MBITS, ROUND_TRIP_MS)
    training = config.training
    dense = 2 * dense_payload_bytes(setup.layout.size) * cohort_size(config) * training.comm_round
    answering = 1 - training.missing_replies
    cells = [*_phase_lines(rows), *_total_lines(rows, dense, link, answering)]
    intro = (
        f"{config.algorithm.name}, {config.model.name} ({setup.layout.size:,} parameters), "
        f"{training.client_num_in_total} client{'s' * (training.client_num_in_total != 1)}, "
        f"{training.comm_round} round{'s' * (training.comm_round != 1)}; bytes of one client's messages.\n"
        "Sizes of entropy-coded messages are approximate, because they depend on the training.\n"
    )
    if answering < 1:
        intro += f"Totals: {answering:.0%} of the clients answer (training.missing_replies).\n"
    return intro + draw(["", *rows], cells, "text", None, text_columns=(0,))


def _phase_lines(rows: Mapping[str, Sequence[PhaseTraffic]]) -> Iterator[list[str]]:
    first = next(iter(rows.values()))
    for number, phase in enumerate(first):
        often = f"{phase.exchanges} round{'s' * (phase.exchanges > 1)}" if phase.timed else "once"
        asked = f"{round(phase.clients, 1):g} client{'s' * (phase.clients > 1)}"
        for name, label in (("down_bytes", "down"), ("up_bytes", "up"), ("peer_bytes", "from other clients")):
            sizes = [getattr(row[number], name) for row in rows.values()]
            if any(sizes):
                yield [f"{phase.phase}, {label} ({often}, {asked})", *map(size_text, sizes)]


def _total_lines(
    rows: Mapping[str, Sequence[PhaseTraffic]], dense: float, link: ClientLink, answering: float
) -> Iterator[list[str]]:
    totals = [sum(phase.run_bytes(answering) for phase in row) for row in rows.values()]
    once = [sum(p.run_bytes(answering) for p in row if not p.timed) for row in rows.values()]
    yield ["whole run, all clients", *map(size_text, totals)]
    yield ["of which one-off phases", *map(size_text, once)]
    yield ["dense FedAvg / this run", *(f"{dense / total:.1f}x" if total else "–" for total in totals)]
    where = f"at {link.mbits:g} Mbit/s, {link.round_trip_ms:g} ms round trip"
    for timed, name in ((False, "one-off phases"), (True, "a round")):
        seconds = [_link_seconds([p for p in row if p.timed == timed], link) for row in rows.values()]
        if any(seconds):
            yield [f"{name} {where}", *(f"{s:.2f} s" for s in seconds)]


def _link_seconds(phases: Sequence[PhaseTraffic], link: ClientLink) -> float:
    """One client's time for one exchange of each phase; for training phases, of the last one only."""
    counted: Sequence[Any] = phases[-1:] if phases and phases[0].timed else phases
    return sum(link.seconds(p.client_bytes) for p in counted)
