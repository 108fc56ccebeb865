"""The services of compose.yaml: what they mount is theirs to read, and they work as the user that compose names."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.processes.process_group import ProcessGroup, free_port
from tests.deploy.container import Machine, compose, image_folders, reason_against

USER = 12345
SECONDS = 240.0
RUN = (
    "model.name=mlp", "algorithm=ssfl", "model.dense_ratio=0.5", "training.comm_round=1", "training.frac=1.0",
    "training.epochs=1", "deploy.sites=1",
)  # fmt: skip


def test_every_service_runs_as_the_owner_of_its_keys() -> None:
    with pytest.raises(KeyError, match="UID:GID"):
        compose({})
    services = compose({"SSFL_USER": "12345:12345"})["services"]
    assert {service["user"] for service in services.values()} == {"12345:12345"}
    for name, service in services.items():
        assert service["read_only"], name
        for volume in service["volumes"]:
            source, target, *options = volume.split(":")
            if source.startswith("."):
                assert options == ([] if name == "server" else ["ro"]), volume
            else:
                assert image_folders()[target] == 0o1777, f"{volume}: only root could write there"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host where a user has run `ssfl deploy init` and put data beside it."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    root = tmp_path / "host"
    root.mkdir()
    make_federation(root / "federation", ["site-0", "site-1", "site-2"], f"server:{free_port()}")
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 60)
    x = draw.normal(size=(60, 8)).astype(np.float32) + y[:, None]
    (root / "data" / "site-0").mkdir(parents=True)
    np.savez(root / "data" / "site-0" / "data.npz", train_x=x, train_y=y, class_names=np.array(["a", "b"]))
    for path in (root, *root.rglob("*")):
        os.chown(path, USER, USER)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    return Machine(root, compose({"SSFL_USER": f"{USER}:{USER}"})["services"], ("server",))


@pytest.mark.slow
def test_the_services_work_with_the_rights_and_mounts_of_compose(machine: Machine, tmp_path: Path) -> None:
    processes = ProcessGroup({"OMP_NUM_THREADS": "1"})
    services = machine.services

    def start(name: str, shows: str) -> None:
        log = tmp_path / f"{name}.log"
        child = processes.start(
            name, machine.words(name, ["ssfl", "deploy", *services[name]["command"]]), log
        )
        wait(lambda: shows in log.read_text(errors="replace"), child, log)

    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            machine.words(name, list(words)), capture_output=True, text=True, timeout=SECONDS, check=False
        )

    health = services["server"]["healthcheck"]["test"][1:]
    try:
        assert run("server", *health).returncode == 2, "not started yet"
        start("server", "listening")
        healthy = run("server", *health)
        assert healthy.returncode == 0, healthy.stderr
        start("site-0", "connected")
        done = run("server", "ssfl", "deploy", "run", "--folder", "/federation/server", *RUN)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "finished, 1 round" in done.stdout
    finally:
        processes.close()
    assert list(machine.volume("runs").glob("outputs/ssfl/*/model.safetensors"))
    assert (machine.volume("state-0") / "site.jsonl").stat().st_uid == USER
    assert run("server", *health).returncode == 1


@pytest.mark.slow
def test_a_service_of_another_user_says_that_it_may_not_read_the_key(machine: Machine) -> None:
    services = {"site-0": {**machine.services["site-0"], "user": "10001:10001"}}
    other = Machine(machine.root, services, machine.names)
    command = ["ssfl", "deploy", *services["site-0"]["command"]]
    done = subprocess.run(
        other.words("site-0", command), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Permission denied" in line


def wait(what: Callable[[], bool], child: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert child.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.2)
