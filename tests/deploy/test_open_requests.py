"""What somebody without a key can send to the SuperLink: no large bodies, no slow ones, no address of their own.

A site whose clock is wrong counts as one without a key, and says so.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from flwr.supernode import node_auth_http_interceptor

from ssfl.deploy.transport import guard
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.port import LinkError
from ssfl.deploy.transport.superlink import UVICORN
from tests.deploy.superlink_here import Here, superlink

PUSH = "/v1/fleet/push-object"


@contextlib.contextmanager
def connected(here: Here) -> Iterator[socket.socket]:
    host, _, port = here.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as opened:
        yield opened


def answer(to: socket.socket, path: str, length: int, body: bytes = b"") -> str:
    """The first line of the answer to a request that declares so many bytes, of which these are sent."""
    to.sendall(f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode() + body)
    return to.recv(4096).decode().partition("\r\n")[0]


def test_a_long_body_is_refused_before_it_is_read() -> None:
    with superlink() as here, connected(here) as one:
        assert "413" in answer(one, PUSH, guard.OPEN_BODY_BYTES + 1)
        assert here.asked == []


def test_a_body_that_stops_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "STALLED_SECONDS", 0.5)
    with superlink() as here, connected(here) as one:
        assert "408" in answer(one, PUSH, 1_000, b"begun")
        assert one.recv(4096) == b""
        assert here.asked == []


def test_a_slow_body_is_read_as_long_as_its_bytes_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "STALLED_SECONDS", 2.0)
    monkeypatch.setattr(guard, "LEAST_BYTES_A_SECOND", 10)
    with superlink() as here, connected(here) as one:
        one.sendall(f"POST {PUSH} HTTP/1.1\r\nHost: here\r\nContent-Length: 200\r\n\r\n".encode())
        for _ in range(4):
            one.sendall(bytes(50))
            time.sleep(1.0)
        assert "408" not in one.recv(4096).decode().partition("\r\n")[0]
        assert here.asked == [PUSH]


def test_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UVICORN, "limit_concurrency", 2)
    with superlink() as here, connected(here) as one:
        assert "503" not in answer(one, "/v1/fleet/", 0)
        with connected(here) as two:
            assert "503" in answer(two, "/v1/fleet/", 0)


def test_a_peer_does_not_choose_its_address() -> None:
    """Else a request that a process on this machine forwards would count as one from the address that it names."""
    with superlink() as here:
        url = f"http://{here.address}/v1/control/list-runs"
        forwarded = httpx.post(url, headers={"X-Forwarded-For": "203.0.113.9"})
        assert forwarded.status_code == httpx.post(url).status_code != 403


def test_a_site_with_a_wrong_clock_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    late = datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(hours=1)
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: late)
    with superlink() as here:
        site = FleetPort(Credentials(here.address))
        here.opened.append(site)
        with pytest.raises(LinkError, match=r"registered there .* clock"):
            site.connect()
