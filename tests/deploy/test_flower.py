"""Real processes on loopback with TLS and node keys: the simulator's bits, kills of everything, nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.federation.keys import make_site_keys
from ssfl.deploy.processes.reaper import MARK, marked
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.port import LinkError
from tests.deploy.live import DEPLOY, SITES, WORDS, Live, live_federation, start_run
from tests.deploy.oracle import check_ledger, missing_of, simulated_model
from tests.support.paths import ROOT

VICTIMS = ("site-0", "site-1", "serverapp", "superlink")


def process_of(live: Live, victim: str) -> int:
    """The id of a process; 0 while it is being started again."""
    if victim == "serverapp":
        record = live.record()
        pid = 0 if record is None else record.pid
        return pid if pid and Path(f"/proc/{pid}").is_dir() else 0
    child = live.server.superlink if victim == "superlink" else live.sites[victim]
    return child.pid if child is not None and child.poll() is None else 0


def kills_of(rounds: int, kills: int, seed: int) -> list[tuple[int, str]]:
    """After which rounds which process is killed, as the seed says."""
    draw = random.Random(seed)
    at = sorted(draw.sample(range(1, rounds - 1), kills))
    return list(zip(at, draw.choices(VICTIMS, k=kills), strict=True))


def survive(live: Live, rounds: int, kills: int, seed: int, at_least: int) -> None:
    """A run through seeded kills of sites, ServerApp and SuperLink; ends as a run with the same replies missing.

    The run may finish before the last kills; `at_least` of them must have happened.
    """
    words = start_run(live, rounds)
    killed = []
    for after, victim in kills_of(rounds, kills, seed):

        def due(after: int = after, victim: str = victim) -> bool:
            return (live.rounds() >= after and process_of(live, victim) > 0) or live.finished()

        live.wait(due, 240, f"no round {after}, or no {victim} to kill")
        if pid := process_of(live, victim):
            live.kill(pid)
            killed.append(victim)
    assert len(killed) >= at_least, f"only {killed} were killed"
    live.wait(live.finished, 240, "the run has not finished")
    events = live.events()
    check_ledger(events, rounds)
    assert live.model().equal(simulated_model(words, SITES, missing_of(events)))


def test_the_seeds_have_what_the_tests_need() -> None:
    assert [victim for _, victim in kills_of(8, 3, 28)] == ["site-0", "serverapp", "superlink"]
    assert {victim for _, victim in kills_of(200, 20, 2)} == set(VICTIMS)


def test_kills_of_site_serverapp_and_superlink(tmp_path: Path) -> None:
    with live_federation(tmp_path, [*WORDS], SITES) as live:
        a_stranger_is_refused(live, tmp_path)
        survive(live, rounds=8, kills=3, seed=28, at_least=3)
        record = live.record()
        assert record is not None
        assert record.restarts >= 2


@pytest.mark.slow
def test_a_soak_of_200_rounds_with_seeded_kills(tmp_path: Path) -> None:
    with live_federation(tmp_path, [*WORDS], SITES) as live:
        survive(live, rounds=200, kills=20, seed=2, at_least=15)


@pytest.mark.slow
def test_local_without_tls(tmp_path: Path) -> None:
    words = command(
        "local", "--insecure", "--sites", "2", "--console", "quiet", *WORDS, "training.comm_round=1"
    )
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_flowers_own_command_starts_a_run(tmp_path: Path) -> None:
    """`flwr run` with the checkout as the app, and with the bundle that takes every key."""
    with live_federation(tmp_path, [*WORDS], SITES) as live:
        common = f"experiment.output_dir={live.root / 'outputs'}"
        flwr = [str(Path(sys.executable).parent / "flwr"), "run"]
        environment = {**os.environ, "FLWR_HOME": str(live.root / "server" / "flwr")}
        words = " ".join((*WORDS, *DEPLOY, common, "training.comm_round=2"))
        keyed = f'words="{" ".join((*WORDS, *DEPLOY, common))}" training.comm_round=3 model.dense_ratio=0.2'
        for app, config, rounds in (
            (ROOT, f'words="{words}"', 2),
            (ROOT, keyed.replace("comm_round=3", "comm_round=4"), 4),
            (live.root / "researcher" / "app", keyed, 3),
        ):
            command_words = [*flwr, str(app), "ssfl", "--run-config", config]
            done = subprocess.run(
                command_words, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            live.wait(lambda rounds=rounds: live.finished() and live.rounds() == rounds, 180, "the run")  # type: ignore[misc]
        assert live.events()[0]["density"] == 0.2


def a_stranger_is_refused(live: Live, folder: Path) -> None:
    """A key that is not registered."""
    make_site_keys(folder, "stranger")
    options = live.server.options
    port = FleetPort(Credentials(options.local_address, options.root_certificates, folder / "site.key"))
    with pytest.raises(LinkError, match="not registered"):
        port.connect()
    port.close()


def test_a_private_file_is_demanded(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    key = tmp_path / "f" / "sites" / "a" / "site.key"
    key.chmod(0o644)
    done = subprocess.run(
        command("site", "--folder", str(key.parent), "--data", "nowhere.npz"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ssfl", "deploy", *words]


def marks_of(parent: int) -> set[str]:
    """The marks that the children of a command carry."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(status[1]) == parent:
            found |= {v.decode().partition("=")[2] for v in environment if v.startswith(MARK.encode() + b"=")}
    return found


def site_of(mark: str) -> int:
    """The id of a site's process with this mark; 0 if there is none."""
    for pid in marked(mark):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[3:5] == [b"deploy", b"site"]:
            return pid
    return 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, "error"])
def test_local_leaves_nothing_behind_however_it_ends(
    how: signal.Signals | Literal["error"], tmp_path: Path
) -> None:
    """Killed, interrupted, or by an error: a site whose process has ended."""
    before = set(Path("/tmp").glob("ssfl-local-*"))
    child = subprocess.Popen(
        command("local", "--sites", "2", "--console", "plain", *WORDS, "training.comm_round=500"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        marks: set[str] = set()
        end = time.monotonic() + 60
        while (not marks or sum(len(marked(m)) for m in marks) < 4) and time.monotonic() < end:
            marks = marks_of(child.pid)
            time.sleep(0.2)
        assert marks, child.stderr.read().decode() if child.stderr else ""
        if how == "error":
            (mark,) = marks
            while not site_of(mark) and time.monotonic() < end:
                time.sleep(0.2)
            pid = site_of(mark)
            assert pid, "no site was started"
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(child.pid, how)
        child.wait(30)
    finally:
        if child.poll() is None:
            child.kill()
        errors = child.communicate()[1].decode()
    end = time.monotonic() + 20
    while any(marked(m) for m in marks) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(marked(m) for m in marks)
    while set(Path("/tmp").glob("ssfl-local-*")) - before and time.monotonic() < end:
        time.sleep(0.1)
    assert not set(Path("/tmp").glob("ssfl-local-*")) - before, "a folder with secrets is left"
    if how is signal.SIGINT:
        assert child.returncode == 130
    if how == "error":
        assert child.returncode == 2
        assert "site-" in errors.splitlines()[-1]
        assert " has ended: " in errors.splitlines()[-1]
