"""A link that is cut and comes back, while both sides think that the other is alive."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from benchmarks.link.namespaces import reason_against, star
from ssfl.deploy.commands.local import write_partition
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment
from tests.deploy.oracle import BITS, check_ledger
from tests.support.paths import ROOT

WORDS = ("preset=digits", "training.frac=1.0", "training.epochs=1", "training.comm_round=30", *BITS)
DEPLOY = ("deploy.server_data=true", "deploy.deadline_seconds=15", "deploy.return_seconds=2")
PORT = 8000


@pytest.mark.slow
def test_a_link_that_is_cut_for_a_while_costs_its_rounds_only(tmp_path: Path) -> None:
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    root = tmp_path / "f"
    make_federation(root, ["site-0", "site-1"], f"10.77.0.1:{PORT}", ["10.77.1.1"])
    write_partition(root, WORDS, 2)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = ProcessGroup({**flower_environment(root / "server"), **environment})
    ssfl = ["env", "-C", str(tmp_path), sys.executable, "-m", "ssfl", "deploy"]
    try:
        with star(2) as net:
            net.connect(100.0, 2.0)
            server = [*net.inside(net.server), *ssfl]
            processes.start(
                "server", [*server, "server", "--folder", str(root / "server")], tmp_path / "server.log"
            )
            wait(lambda: "listening" in (tmp_path / "server.log").read_text(), "listening")
            for n in range(2):
                folder = root / "sites" / f"site-{n}"
                words = [*net.inside(net.site(n)), *ssfl, "site", "--folder", str(folder), "--device", "cpu"]
                words += ["--superlink", f"10.77.{n}.1:{PORT}", "--data", str(folder / "data.npz")]
                processes.start(f"site-{n}", words, tmp_path / f"site-{n}.log")
            processes.start(
                "run",
                [*server, "run", "--folder", str(root / "server"), *WORDS, *DEPLOY],
                tmp_path / "run.log",
            )
            wait(lambda: len(rounds(tmp_path)) >= 3, "three rounds")
            link(net.site(1), "up1", "down")
            cut = len(rounds(tmp_path))
            wait(lambda: len(rounds(tmp_path)) >= cut + 3, "rounds without the site", 90)
            link(net.site(1), "up1", "up")
            wait(
                lambda: bool(rounds(tmp_path)) and rounds(tmp_path)[-1]["clients"] == 2,
                "the site is back",
                90,
            )
            wait(lambda: "finished" in (tmp_path / "run.log").read_text(), "the end", 120)
            events = every_event(tmp_path)
    finally:
        processes.close()
    check_ledger(events, 30)
    missing = [e["missing_clients"] for e in events if e["event"] == "round"]
    assert [1] in missing
    assert all(gone in ([], [1]) for gone in missing)
    assert missing[-1] == []


def link(namespace: str, device: str, state: str) -> None:
    subprocess.run(["ip", "-n", namespace, "link", "set", device, state], check=True)


def wait(what: object, why: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, f"not {why} in {seconds:g} s"
        time.sleep(0.2)


def every_event(folder: Path) -> list[dict[str, object]]:
    (path,) = folder.glob("outputs/*/*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def rounds(folder: Path) -> list[dict[str, object]]:
    if not list(folder.glob("outputs/*/*/metrics.jsonl")):
        return []
    return [event for event in every_event(folder) if event["event"] == "round"]
