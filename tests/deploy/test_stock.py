"""Sites that already run stock SuperNodes: the same ServerApp and messages, our warm executor beside the SuperNode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.federation import keys
from ssfl.deploy.processes.process_group import free_port
from tests.deploy.live import WORDS, Live, live_federation, start_run
from tests.deploy.oracle import check_ledger, missing_of, simulated_model


def start_stock(live: Live, name: str) -> None:
    """flower-supernode with its own key and TLS, and our process as its executor, with the secret between them."""
    folder = live.root / "sites" / name
    port = free_port()
    keys.make_executor_secret(folder)
    secret = folder / keys.EXECUTOR_SECRET
    tools = Path(sys.executable).parent
    words = [str(tools / "flower-supernode"), "--superlink", live.server.options.local_address]
    words += ["--root-certificates", str(folder / keys.CA_CERTIFICATE)]
    words += ["--auth-supernode-private-key", str(folder / keys.SITE_KEY), "--port", str(port)]
    words += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    live.processes.start(f"{name}-supernode", words, live.root / "logs" / f"{name}-supernode.log")
    site = [sys.executable, "-m", "ssfl", "deploy", "site", "--folder", str(folder), "--device", "cpu"]
    site += ["--data", str(folder / "data.npz"), "--stock-supernode", f"127.0.0.1:{port}"]
    site += ["--stock-secret", str(secret)]
    live.processes.start(name, site, live.root / "logs" / f"{name}.log")


@pytest.mark.slow
def test_a_stock_supernode_takes_part_beside_a_site_of_ours(tmp_path: Path) -> None:
    with live_federation(tmp_path, [*WORDS], 2, start=("site-0",)) as live:
        start_stock(live, "site-1")
        words = start_run(live, 4)
        live.wait(live.finished, 240, "the run has not finished")
        events = live.events()
        check_ledger(events, 4)
        assert not missing_of(events)
        assert live.model().equal(simulated_model(words, 2, {}))
