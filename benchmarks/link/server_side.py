"""The server's side, inside Flower's ServerApp: runs the rounds of each cell that the benchmark requests.

The benchmark writes NUMBER.ask (a cell, how many rounds) into a folder and waits for NUMBER.result.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.link.echo_site import LAYOUT
from benchmarks.link.payloads import Cell, density_of, layout, payload, support, wire
from ssfl.algorithms.base import ClientTask, Clock, Instruction, RoundPlan
from ssfl.core.aggregate import weighted_mean
from ssfl.core.payloads import MaskedValues, dense_values
from ssfl.deploy.federation.roster import load_roster
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import messages
from ssfl.deploy.protocol.payloads import most_bytes
from ssfl.deploy.server.exchange import FleetExchange
from ssfl.deploy.server.run_record import home_folder
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings
from ssfl.deploy.transport.grid import GridPort
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.coded_exchange import ServerCoder

LONGEST_SECONDS = 3600.0


def _nothing(*_: Any) -> Any:
    raise NotImplementedError


ECHO = ClientTask(_nothing, _nothing, evaluate=("trained",))
"""A task of a phase that is not a broadcast."""


class _Tasks(dict[str, ClientTask]):
    """Any name is a phase."""

    def __missing__(self, name: str) -> ClientTask:
        return ECHO


def main(grid: Any, config: dict[str, Any]) -> None:
    """Serve cells until the file `quit` appears."""
    torch.set_num_threads(1)
    folder = Path(str(config["folder"]))
    log = EventLog("bench", None)
    members = load_roster(home_folder())
    registry = SiteRegistry(GridPort(grid), members, "bench", log)
    registry.join_of = lambda client: messages.Join("bench", client, "")
    registry.check = lambda client, joined: None if joined.layout == LAYOUT else "no echo site"
    registry.max_body_bytes = most_bytes(layout())
    settings = DeploySettings(deadline_seconds=LONGEST_SECONDS, quorum=1.0)
    exchange = FleetExchange(registry, _Tasks(), wire("exact"), settings, log, folder)
    while len(registry.clients) < len(members):
        registry.poll()
        time.sleep(0.1)
    (folder / "ready").touch()
    number, end = 0, time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end and not (folder / "quit").exists():
        ask = folder / f"{number}.ask"
        if not ask.exists():
            time.sleep(0.05)
            continue
        request = json.loads(ask.read_text())
        result = _rounds(
            exchange,
            Cell(request["kind"], request["density"], request["profile"]),
            request["rounds"],
            len(members),
        )
        temporary = folder / f"{number}.part"
        temporary.write_text(json.dumps(result))
        temporary.replace(folder / f"{number}.result")
        number += 1


def _rounds(exchange: FleetExchange, cell: Cell, rounds: int, sites: int) -> dict[str, Any]:
    """Seconds of each round, the mean over its replies included, and the ledger's bytes."""
    seconds, meter = [], Meter()
    exchange.coder = ServerCoder(wire(cell.profile))
    for _ in range(rounds):
        sent = payload(cell, -1, exchange.number + 1)
        plan = RoundPlan(
            cell.phase,
            tuple(Instruction(c, (sent,)) for c in range(sites)),
            Clock(1, rounds),
            cell.kind != "discovery",
        )
        start = time.perf_counter()
        weighted_mean(_values(exchange, plan, cell, meter), [1.0] * sites)
        seconds.append(time.perf_counter() - start)
    cpu = os.times()
    return {
        "seconds": seconds,
        "down": meter.downlink_bytes,
        "up": meter.uplink_bytes,
        "cpu_seconds": cpu.user + cpu.system,
    }


def _values(exchange: FleetExchange, plan: RoundPlan, cell: Cell, meter: Meter) -> Any:
    for reply in exchange(plan, meter):
        (part,) = reply.payload.parts.values()
        yield (
            support(density_of(cell)).values(part) if isinstance(part, MaskedValues) else dense_values(part),
            1.0,
        )
