"""A federation of real processes on loopback: SuperLink behind its guard, SuperExec, ServerApp, sites."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.commands.local import site_words, write_partition
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.log import EventLog
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment, free_port
from ssfl.deploy.processes.reaper import marked
from ssfl.deploy.server.run_record import RunRecord, load_records
from ssfl.deploy.server.supervisor import Server, ServerOptions
from tests.deploy.oracle import BITS

SITES = 2
WORDS = ("preset=digits", "training.frac=1.0", "training.epochs=1", "experiment.seed=3", *BITS)
DEPLOY = ("deploy.server_data=true", f"deploy.sites={SITES}", "deploy.deadline_seconds=60")


@dataclass
class Live:
    """Processes and folders of one federation."""

    root: Path
    processes: ProcessGroup
    server: Server
    sites: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    keep_sites: bool = True
    """Start a site again that has ended, as systemd would."""
    over: threading.Event = field(default_factory=threading.Event)
    extra: Sequence[str] = ()

    def start_site(self, name: str) -> None:
        number = int(name.rpartition("-")[2])
        words = [*site_words(self.root, name, number, False), *self.extra]
        self.sites[name] = self.processes.start(name, words, self.root / "logs" / f"{name}.log")

    def check_processes(self) -> None:
        self.server.check_processes()
        for name, child in self.sites.items():
            if self.keep_sites and child.poll() is not None:
                self.processes.forget(child)
                self.start_site(name)

    def record(self) -> RunRecord | None:
        records = load_records(self.root / "server")
        return records[-1] if records else None

    def events(self) -> list[dict[str, Any]]:
        record = self.record()
        path = Path(record.folder) / "metrics.jsonl" if record is not None and record.folder else None
        if path is None or not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def rounds(self) -> int:
        return max((e["round"] for e in self.events() if e["event"] == "round"), default=0)

    def wait(self, what: Callable[[], bool], seconds: float, why: str) -> None:
        end = time.monotonic() + seconds
        while not what():
            self.check_processes()
            assert time.monotonic() < end, f"{why} in {seconds:g} s\n{self.logs()}"
            time.sleep(0.2)

    def finished(self) -> bool:
        record = self.record()
        assert record is None or record.status not in ("failed", "stopped"), f"{record}\n{self.logs()}"
        return record is not None and record.status == "finished"

    def logs(self) -> str:
        paths = [*self.root.glob("logs/*.log"), *self.root.glob("server/logs/*.log")]
        paths += [*self.root.glob("server/*.jsonl")]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in paths)

    def model(self) -> Tensor:
        record = self.record()
        assert record is not None
        tensors = load_file(Path(record.folder) / "model.safetensors")
        return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def live_federation(
    root: Path,
    words: Sequence[str],
    sites: int,
    environment: Mapping[str, str] | None = None,
    start: Sequence[str] | None = None,
    partition: bool = True,
) -> Iterator[Live]:
    """Started, and ended in every case: no process, no port is left.

    start: the sites to start; all by default. partition: divide the words' data set; else each site's file lies
    below `root`/data already.
    """
    port = free_port()
    names = [f"site-{n}" for n in range(sites)]
    make_federation(root / "f", names, f"127.0.0.1:{port}")
    if partition:
        write_partition(root / "f", words, sites)
    else:
        for name in names:
            shutil.copy(root / "data" / name / "data.npz", root / "f" / "sites" / name / "data.npz")
    root = root / "f"
    processes = ProcessGroup({**flower_environment(root / "server"), **(environment or {})})
    options = ServerOptions(root / "server", "127.0.0.1", port)
    server = Server(options, processes, EventLog("supervisor", root / "server" / "supervisor.jsonl", None))
    live = Live(root, processes, server)
    try:
        for name in names if start is None else start:
            live.start_site(name)
        server.start()
        yield live
    finally:
        processes.close()
    assert marked(processes.mark) == []
    assert free_again(port)


def free_again(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    return True


def start_run(live: Live, rounds: int, *more: str) -> tuple[str, ...]:
    """Tell the server to begin a run; its words."""
    words = (*WORDS, f"training.comm_round={rounds}", f"experiment.output_dir={live.root / 'outputs'}")
    live.server.run({"words": " ".join((*words, *DEPLOY, *more))})
    return words
