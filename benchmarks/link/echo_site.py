"""A site that does not train: decodes what it receives and sends as much back, with the deployment's port and messages.

usage: python -m benchmarks.link.echo_site SITE_FOLDER HOST:PORT [SUPERNODE_HOST:PORT SECRET_FILE]

With the last two it works for a stock SuperNode instead of connecting by itself.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import torch

from benchmarks.link.payloads import Cell, layout, payload, trained, wire
from ssfl.algorithms.base import ClientReport
from ssfl.core.payloads import Payload
from ssfl.deploy.federation.folders import read_site_folder
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.protocol.payloads import from_bytes, to_bytes
from ssfl.deploy.site.loop import serve
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.port import Message
from ssfl.deploy.transport.stock import serve_stock
from ssfl.wire.holdings import State

LAYOUT = "echo"


class EchoSite:
    """Joins, and replies with a payload of the same kind and size."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        """Codec states by profile."""

    def __call__(self, message: Message) -> Message | str:
        request = message_bytes.unpack(message)
        if isinstance(request, messages.Ping):
            return message_bytes.pack(messages.Pong(request.run))
        if isinstance(request, messages.Join):
            return message_bytes.pack(messages.Joined(request.run, request.client, 1, 0, 2, (1,), LAYOUT, ""))
        if isinstance(request, messages.Finish):
            return message_bytes.pack(messages.Finished(request.run))
        assert isinstance(request, messages.Work)
        reply = to_bytes(self._answer(request), layout())
        return message_bytes.pack(
            messages.Done(request.run, request.client, request.exchange, ClientReport(1), reply)
        )

    def _answer(self, work: messages.Work) -> Payload:
        inbox = [from_bytes(raw, layout()) for raw in work.inbox]
        cell = Cell.of(work.phase)
        if cell.profile == "exact" and cell.kind != "discovery":
            return payload(cell, work.client, work.exchange)
        link, hop = wire(cell.profile), (work.client, work.phase, work.round)
        opened = link.open_inbox(inbox, self.states.get(cell.profile, {}), *hop)
        answer = trained(opened.payloads[0], work.client, work.exchange)
        sent, self.states[cell.profile] = link.send_reply(answer, opened.received, opened.state, *hop)
        return sent


def main(folder: Path, superlink: str) -> None:
    """Serve until the process is ended."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # so that `port.close` runs
    site = read_site_folder(folder)
    port = FleetPort(Credentials(superlink, site.root_certificates, site.private_key))
    log = EventLog(site.name, None)
    try:
        serve(port, EchoSite(), log, threading.Event(), 2_000_000_000)
    finally:
        port.close()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        torch.set_num_threads(1)
        serve_stock(sys.argv[3], Path(sys.argv[4]), EchoSite(), EventLog("stock", None), threading.Event())
    else:
        main(Path(sys.argv[1]), sys.argv[2])
