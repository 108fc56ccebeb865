"""The files for operators are what systemd, Docker and compose accept, as far as that shows without running them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssfl.cli_parser import build_parser
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy"
UNITS = sorted((FOLDER / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program that a unit starts must exist where it is checked.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/ssfl/.venv/bin/ssfl", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    words = [w for w in shlex.split(line.replace("$SSFL_OPTIONS", ""))[1:] if w]
    assert build_parser().parse_args(words).verb == "deploy"


def compose() -> dict[str, dict[str, dict[str, object]]]:
    return yaml.safe_load((FOLDER / "docker" / "compose.yaml").read_text())  # type: ignore[no-any-return]


def test_compose_services_start_commands_that_exist() -> None:
    for name, service in compose()["services"].items():
        words = service["command"]
        assert isinstance(words, list)
        assert build_parser().parse_args(["deploy", *words]).deploy_verb == words[0], name


def test_compose_keeps_to_what_it_declares() -> None:
    declared = compose()
    allowed = {
        "image", "build", "command", "restart", "cap_drop", "security_opt", "ports", "volumes", "healthcheck",
        "read_only", "tmpfs", "depends_on", "user", "sysctls",
    }  # fmt: skip
    for name, service in declared["services"].items():
        assert set(service) <= allowed, name
        assert service["cap_drop"] == ["ALL"]
        named = {str(v).partition(":")[0] for v in service["volumes"] if not str(v).startswith(".")}  # type: ignore[attr-defined]
        assert named <= set(declared["volumes"])
        assert "environment" not in service, "secrets come from mounted files"


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("hadolint is not installed: bash setup.sh --dev")
    words = [tool, "--no-color", str(FOLDER / "docker" / "Dockerfile")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_copies_what_there_is_and_runs_as_nobody_special() -> None:
    text = (FOLDER / "docker" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in instructions} <= known
    assert re.search(r"^FROM \S+:\d[\w.-]+$", text, re.MULTILINE), "a base image has a version"
    for word, rest in instructions:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    users = [rest for word, rest in instructions if word == "USER"]
    assert users
    assert users[-1] != "root"
