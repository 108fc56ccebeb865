"""Both ends of the range of flwr that the extra allows; an unknown version is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.deploy.transport import internals
from ssfl.deploy.transport.fleet import Credentials, FleetPort
from ssfl.deploy.transport.fleet_client import WRITE_SECONDS
from tests.support.paths import ROOT


def test_an_unknown_version_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.99.0")
    with pytest.raises(
        internals.FlowerVersionError, match=r"flwr 1.99.0 is not supported .* 1.41, 1.42"
    ) as caught:
        internals.check_version()
    assert "\n" not in str(caught.value)


def test_without_flower_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(internals.FlowerVersionError, match=r"setup.sh --deploy"):
        internals.check_version()


def test_without_flower_every_verb_says_so_in_one_line() -> None:
    """In a process that has neither Flower nor what Flower brings."""
    program = """
import sys
from importlib import metadata
for name in ("flwr", "httpx", "cryptography", "prometheus_client"):
    sys.modules[name] = None
def missing(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = missing
from ssfl.cli import main
sys.exit(main(["deploy", "local"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ssfl: ssfl deploy needs Flower: `bash setup.sh --deploy`")
    assert done.stderr.count("\n") == 1


def test_a_release_that_moves_a_patched_name_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(internals.PATCHED, "grid", ("flwr.superlink.grid.http_grid", "no_such_name"))
    with pytest.raises(
        internals.FlowerVersionError, match=r"has moved flwr.superlink.grid.http_grid.no_such_name"
    ):
        internals.patched_module("grid")


def test_a_slow_link_may_take_its_time_to_send() -> None:
    port = FleetPort(Credentials("127.0.0.1:1"))
    timeout = port._client._client.timeout
    port.close()
    assert (timeout.write, timeout.read) == (WRITE_SECONDS, 30.0)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.41.0", "1.42.0"])
def test_the_deployment_runs_on_both_ends_of_the_range(version: str, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
        f"flwr=={version}",
    ]
    installed = subprocess.run(words, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"flwr {version} cannot be installed here: {installed.stderr.strip()[-200:]}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "from ssfl.deploy.transport.internals import VERSION; print(VERSION)"
    reported = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert reported.stdout.strip() == version
    chosen = ["tests/deploy/test_flower.py::test_kills_of_site_serverapp_and_superlink"]
    if version == "1.41.0":
        chosen += [
            "tests/deploy/test_stock.py",
            "tests/deploy/test_live_commands.py",
            "tests/deploy/test_app_bundle.py",
        ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *chosen],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
