"""Every benchmark's common options; the limits that a benchmark with --isa has and states in its file."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from benchmarks.figures import options
from benchmarks.isa import CAPS, OTHER_NAMES, caps_set, hindrance, restart_capped
from ssfl.assemble import calibration_key
from tests.support.paths import ROOT

ALL = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))
ON_X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits of x86-64")


class Parsed(Exception):
    """Raised instead of parsing, with the benchmark's parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class Restarted(Exception):
    """Raised instead of a restart."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        self.environment = environment


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without limits, and without a restart of the tests."""
    for name in caps_set():
        monkeypatch.delenv(name)

    def execve(program: str, words: list[str], environment: Mapping[str, str]) -> NoReturn:
        raise Restarted(environment)

    monkeypatch.setattr(os, "execve", execve)


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that the benchmark's `main` uses."""
    module = importlib.import_module(f"benchmarks.{name}")

    def parse(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise Parsed(parser)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed) as caught:
            module.main()
    return caught.value.parser


@pytest.mark.parametrize("name", ALL)
def test_every_command_takes_quick_json_and_isa(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(name, monkeypatch)
    assert not parser.parse_args([]).quick
    chosen = parser.parse_args(["--quick", "--json", "figures.json"])
    assert chosen.quick
    assert chosen.json == Path("figures.json")
    allowed = "neon" if hindrance("avx2", platform.machine()) else "avx2"
    with pytest.raises(Restarted) as caught:
        parser.parse_args(["--isa", allowed])
    assert CAPS[allowed].items() <= caught.value.environment.items()


@pytest.mark.parametrize("name", CAPS)
def test_a_restart_has_exactly_the_limits_of_the_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited limits of another set, and oneDNN's older variable, are removed."""
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"):
        monkeypatch.setenv(variable, "inherited")
    monkeypatch.setenv("UNRELATED", "kept")
    with pytest.raises(Restarted) as caught:
        restart_capped(name)
    environment = caught.value.environment
    assert environment["UNRELATED"] == "kept"
    limits = {variable: environment[variable] for variable in calibration_key.CAPS if variable in environment}
    assert limits == CAPS[name]
    for variable in calibration_key.CAPS:
        monkeypatch.delenv(variable, raising=False)
        if variable in environment:
            monkeypatch.setenv(variable, environment[variable])
    restart_capped(name)  # the limits are set: no second restart


def test_limits_are_part_of_the_key_of_a_measurement() -> None:
    assert {name for caps in CAPS.values() for name in caps} <= set(calibration_key.CAPS)
    assert set(OTHER_NAMES) <= set(calibration_key.CAPS)


@pytest.mark.parametrize(
    ("name", "machine", "allowed"),
    [
        ("neon", "x86_64", "avx512, avx2, sse2"),
        ("avx2", "aarch64", "neon"),
        ("neon", "arm64", ""),
        ("sse2", "x86_64", ""),
    ],
)
def test_a_set_of_another_kind_of_processor_is_refused(
    name: str,
    machine: str,
    allowed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit if allowed else Restarted):
        options("a test").parse_args(["--isa", name])
    if allowed:
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"error: --isa {name}: this processor is {machine}; allowed here: {allowed}")


PROGRAM = """
import json
from benchmarks.figures import options
from benchmarks.machine import describe
options("a test").parse_args()
print(json.dumps(describe()["instruction_sets"]))
"""


@ON_X86
def test_the_machine_file_states_the_limits_and_what_the_libraries_use() -> None:
    """A real restart; `sse2` exists on every x86-64 processor."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--isa", "sse2"],
        cwd=ROOT,
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    stated = json.loads(done.stdout)
    assert stated["caps"] == CAPS["sse2"]
    assert stated["torch"] in ("DEFAULT", "NO AVX")
    assert stated["ssfl"] in ("sse2", None)  # None: built without a C compiler
