"""Counters of the links of bench_link: without packet headers they count what a program has sent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.link.namespaces import reason_against, star

SENT = 3_000_000
RECEIVE = """
import socket
server = socket.create_server(("10.77.0.1", 9000))
print("ready", flush=True)
connection, _ = server.accept()
total = 0
while piece := connection.recv(1 << 16):
    total += len(piece)
print(total, flush=True)
"""
SEND = f"""
import socket
with socket.create_connection(("10.77.0.1", 9000)) as connection:
    connection.sendall(bytes({SENT}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rate", [None, 20.0])
def test_bytes_without_packet_headers_are_those_that_were_sent(rate: float | None) -> None:
    """Plain TCP, with few large packets or, over a slow link, many small ones."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    with star(1) as net:
        net.connect(rate, 2.0)
        before = net.counters()
        words = [*net.inside(net.server), sys.executable, "-c", RECEIVE]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            subprocess.run([*net.inside(net.site(0)), sys.executable, "-c", SEND], check=True, timeout=60)
            assert server.stdout.readline() == f"{SENT}\n"
        after = net.counters()
    up, down = after["up"] - before["up"], after["down"] - before["down"]
    assert up.packets > 40
    # Options of the first packets, and selective acknowledgements, are longer than the usual headers.
    assert SENT <= up.content < SENT * 1.001
    assert 0 <= down.content < 0.001 * SENT
