"""ResNet50, 94 MB dense each way: it goes through, and the server's memory does not grow with the number of sites."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from tests.deploy.live import Live, live_federation
from tests.deploy.oracle import BITS, check_ledger

WORDS = (
    "preset=digits",
    "model.name=resnet50",
    "training.frac=1.0",
    "training.epochs=1",
    "training.batch_size=256",
    *BITS,
)
ROUNDS = 2
MODEL_MB = 94.4


def peak_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1000
    return 0.0


def peaks(root: Path, sites: int, algorithm: str) -> dict[str, float]:
    """Largest resident memory in MB: of the ServerApp, the SuperLink and the first site."""
    found = {"serverapp": 0.0, "superlink": 0.0, "site": 0.0}
    with live_federation(root, WORDS, sites) as live:
        over = threading.Event()
        watcher = threading.Thread(target=watch, args=(live, found, over))
        words = [
            *WORDS,
            f"algorithm={algorithm}",
            f"training.comm_round={ROUNDS}",
            "deploy.deadline_seconds=600",
        ]
        words += [f"experiment.output_dir={root / 'outputs'}", f"deploy.sites={sites}", "deploy.quorum=1.0"]
        live.server.run({"words": " ".join(words)})
        watcher.start()
        try:
            live.wait(live.finished, 900, "the run has not finished")
        finally:
            over.set()
            watcher.join()
        check_ledger(live.events(), ROUNDS)
        moved = [e for e in live.events() if e["event"] == "round"][-1]
        if algorithm == "fedavg":
            assert moved["uplink_bytes"] > 90e6 * sites
    return found


def watch(live: Live, found: dict[str, float], over: threading.Event) -> None:
    while not over.wait(0.2):
        record = live.record()
        pids = {"serverapp": record.pid if record is not None else 0}
        pids["superlink"] = live.server.superlink.pid if live.server.superlink is not None else 0
        pids["site"] = live.sites["site-0"].pid
        for name, pid in pids.items():
            found[name] = max(found[name], peak_mb(pid))


@pytest.mark.slow
def test_a_large_model_goes_through_in_bounded_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, many = (peaks(tmp_path / str(sites), sites, "fedavg") for sites in (2, 4))
    sparse = peaks(tmp_path / "sparse", 2, "ssfl")
    with capsys.disabled():
        print(
            f"\npeak MB, dense, 2 sites: {few}; 4 sites: {many}; SSFL at 0.5, 2 sites: {sparse}", flush=True
        )
    assert many["serverapp"] - few["serverapp"] < 0.5 * MODEL_MB
    assert os.environ.get("CI", "") or few["serverapp"] < 1_100
