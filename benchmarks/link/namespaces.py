"""A star of network namespaces: a server and its sites, each over a link of its own with a rate and a delay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BURST_BYTES = 70_000
"""One packet with segmentation offload must fit, or tc cuts it into MTU-sized ones."""


HEADER_BYTES = 20 + 20 + 12
"""IPv4, TCP, and TCP's time stamps, of every packet. A TUN device has no Ethernet header, which would be 14 more."""


@dataclass(frozen=True)
class Traffic:
    """What interfaces have counted. A packet with segmentation offload, of up to 64 KB, counts as one."""

    bytes: int = 0
    """With the headers of IP and TCP."""
    packets: int = 0
    """With those that only acknowledge."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes + other.bytes, self.packets + other.packets)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.packets - other.packets)

    @property
    def content(self) -> int:
        """Bytes without the headers of packets: TLS and what is inside."""
        return self.bytes - self.packets * HEADER_BYTES


class NoLink(Exception):
    """Links cannot be made on this machine; the text says why."""


def reason_against() -> str | None:
    """Why this machine cannot make links; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the command {tool} is missing (iproute2)"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun is missing"
    name = f"ssfl-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@dataclass
class Star:
    """The server's namespace, and one for each site; site k's server side is 10.77.k.1, its own 10.77.k.2."""

    sites: int
    keeps_window: bool = False
    """Whether TCP keeps its congestion window through a pause: net.ipv4.tcp_slow_start_after_idle=0."""
    congestion: str = "cubic"
    """TCP's congestion control: Linux's default, whatever the default of this machine is."""
    prefix: str = field(default_factory=lambda: f"ssfl{os.getpid() % 10_000}")
    _line: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> str:
        """The server's namespace."""
        return f"{self.prefix}-server"

    def site(self, number: int) -> str:
        """A site's namespace."""
        return f"{self.prefix}-site{number}"

    def server_address(self, number: int) -> str:
        """The address at which site `number` reaches the server."""
        return f"10.77.{number}.1"

    def inside(self, namespace: str) -> list[str]:
        """The command prefix that runs a command in a namespace."""
        return ["ip", "netns", "exec", namespace]

    def make(self) -> None:
        """The namespaces, with loopback up; links come with `connect`."""
        for namespace in (self.server, *(self.site(n) for n in range(self.sites))):
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            if self.keeps_window:
                _run(*self.inside(namespace), "sysctl", "-qw", "net.ipv4.tcp_slow_start_after_idle=0")

    def connect(self, rate_mbit: float | None, delay_ms: float) -> None:
        """Make a link for each site with this rate (each way) and one-way delay; replaces earlier links."""
        self.disconnect()
        links = [f"{self.server}:to{n}:{self.site(n)}:up{n}" for n in range(self.sites)]
        words = [sys.executable, "-m", "benchmarks.link.delay_line", str(delay_ms / 1000), *links]
        self._line = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self._line.stdout is not None
        if self._line.stdout.readline().strip() != b"ready":
            raise NoLink("the delay line did not start")
        for n in range(self.sites):
            for namespace, device, own, far in self._ends(n):
                _run("ip", "-n", namespace, "addr", "add", f"{own}/32", "peer", f"{far}/32", "dev", device)
                _run("ip", "-n", namespace, "link", "set", device, "up", "txqueuelen", "20000")
                route = ["replace", f"{far}/32", "dev", device, "src", own, "congctl", self.congestion]
                _run("ip", "-n", namespace, "route", *route)
                if rate_mbit is not None:
                    self._shape(namespace, device, rate_mbit)

    def _ends(self, n: int) -> list[tuple[str, str, str, str]]:
        return [
            (self.server, f"to{n}", self.server_address(n), f"10.77.{n}.2"),
            (self.site(n), f"up{n}", f"10.77.{n}.2", self.server_address(n)),
        ]

    def _shape(self, namespace: str, device: str, rate_mbit: float) -> None:
        limit = max(2_000_000, int(rate_mbit * 125_000))
        words = ["rate", f"{rate_mbit:g}mbit", "burst", str(BURST_BYTES), "limit", str(limit)]
        _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *words)

    def disconnect(self) -> None:
        """End the links."""
        if self._line is not None:
            self._line.kill()
            self._line.wait()
            if self._line.stdout is not None:
                self._line.stdout.close()
            self._line = None

    def counters(self) -> dict[str, Traffic]:
        """What the sites have received ("down") and sent ("up"), all together, since `connect`."""
        found = {"down": Traffic(), "up": Traffic()}
        for n in range(self.sites):
            (link,) = json.loads(_run("ip", "-n", self.site(n), "-s", "-j", "link", "show", f"up{n}"))
            for way, counter in (("down", "rx"), ("up", "tx")):
                found[way] += Traffic(link["stats64"][counter]["bytes"], link["stats64"][counter]["packets"])
        return found

    def remove(self) -> None:
        """Remove everything, also after a failed `make`."""
        self.disconnect()
        for namespace in (self.server, *(self.site(n) for n in range(self.sites))):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


@contextmanager
def star(sites: int, keeps_window: bool = False, congestion: str = "cubic") -> Iterator[Star]:
    """A star that is removed at the end. Raises NoLink."""
    if (reason := reason_against()) is not None:
        raise NoLink(reason)
    made = Star(sites, keeps_window, congestion)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoLink(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
