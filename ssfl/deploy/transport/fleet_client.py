"""The HTTP client with which a site sends requests to the Fleet API."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import httpx

from ssfl.deploy.transport import internals as flower
from ssfl.deploy.transport.patches import free_responses

WRITE_SECONDS = 120.0
"""Write timeout of one piece of a request (`early_push.PIECE_BYTES`)."""
IDLE_CONNECTION_SECONDS = 900.0
"""How long a site keeps a connection without requests; less than the SuperLink does (`superlink.KEEP_ALIVE_SECONDS`).
After httpx's 5 s a site would connect again after every epoch: two round trips, and TCP would start slowly."""
PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""An idle connection is probed, in seconds and numbers, so that routers do not forget it, and a dead one is found."""


def fleet_client(address: str, certificates: bytes | None, interceptors: list[Any]) -> flower.FleetHttpClient:
    """A client of the Fleet API for slow and long links. certificates: PEM of the authority; None: no TLS."""
    free_responses()
    client = flower.FleetHttpClient.from_server_address(
        address, certificates is None, certificates, interceptors
    )
    usual = client._client.timeout
    client._client.close()
    verify: ssl.SSLContext | bool = certificates is not None
    if certificates is not None:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        verify.load_verify_locations(cadata=certificates.decode("ascii"))
    limits = httpx.Limits(keepalive_expiry=IDLE_CONNECTION_SECONDS)
    client._client = httpx.Client(
        verify=verify,
        transport=httpx.HTTPTransport(verify=verify, limits=limits, socket_options=_probing()),
        timeout=httpx.Timeout(connect=usual.connect, read=usual.read, write=WRITE_SECONDS, pool=usual.pool),
        limits=limits,
        follow_redirects=True,
    )
    return client


def _probing() -> list[tuple[int, int, int]]:
    """Socket options; some systems lack the times, and use their own."""
    known = [(getattr(socket, name), value) for name, value in PROBES.items() if hasattr(socket, name)]
    options = [(socket.IPPROTO_TCP, option, value) for option, value in known]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *options]
