"""Rounds of a real federation over a link of given rate and delay: bytes on the wire and seconds, beside stock Flower.

One server and five sites in network namespaces, TLS and node keys on; sites train nothing and send as much back as they
got, so that a round is communication alone: encoding, Flower, TLS, the link, decoding, the mean. Needs root and ip, tc;
prints the reason and skips if they are missing. Bytes are the interfaces' counters at the sites. Of these, headers are
52 bytes a packet (IPv4, TCP, time stamps), 3.6 % of a full packet of 1,500 bytes and 0.1 % of one with segmentation
offload; "without packet headers" is bytes - 52 * packets: TLS, HTTP, Flower's objects, polling, and the payloads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.figures import Figure, options, publish, times
from benchmarks.link.apps import OURS, STOCK, write_bundle
from benchmarks.link.namespaces import NoLink, Star, Traffic, star
from benchmarks.link.payloads import SMALL_COORDINATES, Cell, layout
from ssfl.deploy.federation import keys
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment

Stock = Literal["no", "yes", "with our executor"]
"""Whether a site runs a stock SuperNode, and what computes beside it."""
SUPERNODE = "127.0.0.1:9094"
PORT = 8600
SITES = 5
RATES_MBIT = (10.0, 100.0, 1000.0)
DELAYS_MS = (5.0, 50.0, 150.0)
CELLS = (
    Cell("dense"),
    Cell("masked", 0.5),
    Cell("masked", 0.1),
    Cell("masked", 0.05),
    Cell("masked", 0.1, "small"),
)
DISCOVERY = tuple(Cell("discovery", 0.1, profile) for profile in ("authors", "exact", "small"))
START_SECONDS = 120.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Field:
    """A running federation in a star of namespaces."""

    net: Star
    root: Path
    processes: ProcessGroup
    executors: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def start_server(self) -> None:
        """SuperLink and SuperExec in the server's namespace."""
        words = [sys.executable, "-m", "ssfl", "deploy", "server", "--folder", str(self.root / "server")]
        words += ["--host", "0.0.0.0", "--port", str(PORT)]
        self.processes.start("server", self.net.inside(self.net.server) + words, self.root / "server.log")
        self.await_("listening", lambda: "listening" in self.log("server"))

    def start_site(self, number: int, stock: Stock = "no") -> subprocess.Popen[bytes]:
        """A site of this project, or a stock SuperNode, in its namespace."""
        folder = self.root / "sites" / f"site-{number}"
        superlink = f"{self.net.server_address(number)}:{PORT}"
        words = [sys.executable, "-m", "benchmarks.link.echo_site", str(folder), superlink]
        if stock != "no":
            words = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", superlink]
            words += ["--root-certificates", str(folder / keys.CA_CERTIFICATE)]
            words += ["--auth-supernode-private-key", str(folder / keys.SITE_KEY)]
        inside = self.net.inside(self.net.site(number))
        if stock == "with our executor":
            if not (folder / keys.EXECUTOR_SECRET).is_file():
                keys.make_executor_secret(folder)
            secret = str(folder / keys.EXECUTOR_SECRET)
            words += ["--isolation", "process", "--superexec-auth-secret-file", secret]
            echo = [sys.executable, "-m", "benchmarks.link.echo_site", str(folder), superlink]
            child = self.processes.start(
                f"executor-{number}", [*inside, *echo, SUPERNODE, secret], self.root / "executors.log"
            )
            self.executors.append(child)
        return self.processes.start(f"site-{number}", inside + words, self.root / f"site-{number}.log")

    def start_run(self, bundle: Path, config: dict[str, Any]) -> None:
        """Start a run through the Control API, from the server's namespace."""
        code = (
            "import json, sys; from pathlib import Path; from ssfl.deploy.transport.control import Control; "
            "c = Control(sys.argv[1], Path(sys.argv[2])); c.start(Path(sys.argv[3]), json.loads(sys.argv[4]))"
        )
        words = [
            sys.executable,
            "-c",
            code,
            f"127.0.0.1:{PORT}",
            str(self.root / "server" / keys.CA_CERTIFICATE),
        ]
        words += [str(bundle), json.dumps(config)]
        subprocess.run(self.net.inside(self.net.server) + words, check=True, cwd=ROOT)

    def log(self, name: str) -> str:
        """The output of a process."""
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def await_(self, what: str, there: Any, seconds: float = START_SECONDS) -> None:
        """Wait until `there()`. Raises NoLink with the ends of the logs."""
        end = time.monotonic() + seconds
        while not there():
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{p.name}: {p.read_text(errors='replace')[-600:]}" for p in self.root.rglob("*.log")
                )
                raise NoLink(f"not {what} in {seconds:g} s\n{logs}")
            time.sleep(0.02)


@contextmanager
def field(net: Star) -> Iterator[Field]:
    """A federation with keys, whose processes end with the context."""
    root = Path(tempfile.mkdtemp(prefix="ssfl-link-"))
    hosts = [net.server_address(n) for n in range(net.sites)]
    names = [f"site-{n}" for n in range(net.sites)]
    make_federation(root / "f", names, f"{hosts[0]}:{PORT}", hosts)
    environment = {
        **flower_environment(root / "f" / "server"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    processes = ProcessGroup(environment, root)
    try:
        yield Field(net, root / "f", processes)
    finally:
        processes.close()


@dataclass
class Ours:
    """The deployment's ServerApp, waiting for cells."""

    at: Field
    folder: Path
    number: int = 0

    @staticmethod
    def start(at: Field) -> Ours:
        """Start the run and wait until all sites have joined."""
        folder = at.root / "cells"
        folder.mkdir()
        at.start_run(write_bundle(at.root / "bundle", OURS), {"folder": str(folder)})
        at.await_("joined", (folder / "ready").exists)
        return Ours(at, folder)

    def rounds(self, cell: Cell, rounds: int, seconds: float = 1800.0) -> dict[str, Any]:
        """Measure rounds of a cell, with the bytes that the interfaces counted."""
        before = self.at.net.counters()
        result_file = self.folder / f"{self.number}.result"
        ask = {"kind": cell.kind, "density": cell.density, "profile": cell.profile, "rounds": rounds}
        part = self.folder / "ask.part"
        part.write_text(json.dumps(ask))
        part.replace(self.folder / f"{self.number}.ask")
        self.at.await_(f"finished with {cell.name}", result_file.exists, seconds)
        self.number += 1
        after = self.at.net.counters()
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result | {f"wire_{way}": after[way] - before[way] for way in ("down", "up")}


def measure_cells(
    net: Star,
    rates: Sequence[float],
    delays: Sequence[float],
    cells: Sequence[Cell],
    rounds: int,
    timed: bool,
) -> list[Figure]:
    """Measure the deployment over every link. timed: seconds too, which need an idle machine."""
    figures: list[Figure] = []
    net.connect(None, 0.1)
    with field(net) as at:
        at.start_server()
        for n in range(net.sites):
            at.start_site(n)
        ours = Ours.start(at)
        for rate in rates:
            for delay in delays:
                net.connect(rate, delay)
                figures += (found := _cells_of_a_link(ours, rate, delay, cells, rounds, timed))
                print_figures(found)
        (ours.folder / "quit").touch()
    return figures


def _cells_of_a_link(
    ours: Ours, rate: float, delay: float, cells: Sequence[Cell], rounds: int, timed: bool
) -> list[Figure]:
    figures: list[Figure] = []
    first: Figure | None = None
    ours.rounds(Cell("small"), 2)  # the sites reconnect over the new link
    for cell in cells:
        ours.rounds(cell, 1)  # each side makes the cell's payloads and opens its connections
        got = ours.rounds(cell, rounds)
        row = times(f"{rate:g} Mbit/s {delay:g} ms {cell.name}: round", got["seconds"])
        if timed and first is None:
            figures.append(row)
        elif timed and first is not None:
            ratio = first.value / row.value
            figures.append(Figure(row.name, row.value, "s", cells[0].name, ratio, row.n, row.spread))
        first = first or row
        for way in ("down", "up"):
            name = f"{rate:g} Mbit/s {delay:g} ms {cell.name}: {way}"
            wire: Traffic = got[f"wire_{way}"]
            for what, count in (("on the wire", wire.bytes), ("without packet headers", wire.content)):
                figures.append(Figure(f"{name} {what} over the ledger", count / got[way], "ratio", n=rounds))
            figures.append(Figure(f"{name} bytes a packet", wire.bytes / wire.packets, "bytes", n=rounds))
    return figures


def measure_fixed_cost(net: Star, rounds: int, against_stock: bool) -> list[Figure]:
    """Rounds over an unshaped link: ours, then stock SuperNodes with our executor, or stock Flower.

    0.5 MB each way shows the fixed cost, 45 MB what a large model adds; both on one SuperLink with TLS and node keys.
    """
    net.connect(None, 0.01)
    with field(net) as at:
        at.start_server()
        sites = [at.start_site(n) for n in range(net.sites)]
        ours = Ours.start(at)
        ours.rounds(Cell("small"), 2)
        figures = [
            times("0.5 MB each way: ours", ours.rounds(Cell("small"), rounds)["seconds"]),
            times("45 MB each way: ours", ours.rounds(Cell("dense"), max(3, rounds // 4))["seconds"]),
        ]
        print_figures(figures)
        if not against_stock:
            figures.append(_idle(sites[0].pid))
        (ours.folder / "quit").touch()
        for site in sites:
            at.processes.stop(site)
        figures += _stock(at, rounds, figures) if against_stock else _through_stock(at, rounds)
    return figures


def _idle(pid: int) -> Figure:
    """CPU use of a site that received no work for half a minute."""
    time.sleep(30)
    start, begun = _cpu_seconds(pid), time.monotonic()
    time.sleep(20)
    figure = Figure(
        "CPU of an idle site", 100 * (_cpu_seconds(pid) - start) / (time.monotonic() - begun), "% of a core"
    )
    print_figures([figure])
    return figure


def print_figures(figures: Sequence[Figure]) -> None:
    """Print the figures measured so far."""
    for f in figures:
        print(f"{f.name}: {f.value:.4g} {f.unit} {f.ratio or ''}", flush=True)


def _through_stock(at: Field, rounds: int) -> list[Figure]:
    """Stock SuperNodes with this project's executor; the same ServerApp."""
    nodes = [at.start_site(n, "with our executor") for n in range(at.net.sites)]
    for name in ("cells", "bundle"):
        (at.root / name).rename(at.root / f"{name}-before")
    ours = Ours.start(at)
    ours.rounds(Cell("small"), 2)
    seconds = ours.rounds(Cell("small"), rounds)["seconds"]
    (ours.folder / "quit").touch()
    for process in (*at.executors, *nodes):
        at.processes.stop(process)
    figure = times("0.5 MB each way: stock SuperNodes, our executor", seconds)
    print_figures([figure])
    return [figure]


def _stock(at: Field, rounds: int, ours: Sequence[Figure]) -> list[Figure]:
    """Stock Flower on the same SuperLink."""
    for n in range(at.net.sites):
        at.start_site(n, "yes")
    figures = []
    sizes = {"0.5 MB each way: stock Flower": str(SMALL_COORDINATES)}
    sizes["45 MB each way: stock Flower"] = " ".join(map(str, layout().sizes))
    for number, (name, values) in enumerate(sizes.items()):
        result = at.root / f"stock{number}.json"
        config = {
            "sites": at.net.sites,
            "rounds": max(3, rounds // 3),
            "sizes": values,
            "result": str(result),
        }
        at.start_run(write_bundle(at.root / f"stock{number}", STOCK), config)
        at.await_("finished", result.exists, 600)
        row = times(name, json.loads(result.read_text())["seconds"])
        ratio = ours[number].value / row.value
        figures.append(Figure(row.name, row.value, "s", "ours", ratio, row.n, row.spread))
        print_figures(figures[-1:])
    return figures


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its children (`ip netns exec` becomes the command itself)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print and write the figures."""
    parser = options(__doc__ or "")
    parser.add_argument(
        "--part", choices=("cells", "bytes", "discovery", "fixed", "stock", "all"), default="all"
    )
    parser.add_argument("--rates", default=",".join(f"{r:g}" for r in RATES_MBIT))
    parser.add_argument("--delays", default=",".join(f"{d:g}" for d in DELAYS_MS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sites", type=int, default=SITES)
    parser.add_argument(
        "--keep-window",
        action="store_true",
        help="set net.ipv4.tcp_slow_start_after_idle=0 at the server and the sites",
    )
    parser.add_argument(
        "--congestion", default="cubic", help="TCP's congestion control (default: cubic, as in Linux)"
    )
    arguments = parser.parse_args()
    rates, delays = ([float(v) for v in text.split(",")] for text in (arguments.rates, arguments.delays))
    cells: Sequence[Cell] = CELLS
    sites, rounds = arguments.sites, arguments.rounds
    if arguments.quick:
        rates, delays, cells, sites, rounds = [100.0], [5.0], (Cell("dense"), Cell("masked", 0.1)), 2, 1
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the namespaces are removed too
    figures: list[Figure] = []
    try:
        with star(sites, arguments.keep_window, arguments.congestion) as net:
            for part in ("fixed", "stock"):
                if arguments.part in (part, "all") and not arguments.quick:
                    figures += measure_fixed_cost(net, 6 * rounds, part == "stock")
            if arguments.part in ("cells", "bytes", "all"):
                figures += measure_cells(net, rates, delays, cells, rounds, arguments.part != "bytes")
            if arguments.part in ("discovery", "all") and not arguments.quick:
                figures += measure_cells(net, rates, delays, DISCOVERY, rounds, True)
    except NoLink as error:
        print(f"skipped: {error}")
        return 0
    publish(figures, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
