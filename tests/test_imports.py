"""The allowed imports between packages (docs/architecture.md), checked in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.packages import ALLOWED, PACKAGE, imports_of, package_of_module, package_of_path, sources
from tests.support.paths import ROOT

WITHOUT_LIBRARIES = {
    "hydra",
    "omegaconf",
    "rich",
    "matplotlib",
    "os",
    "pathlib",
    "socket",
    "time",
    "random",
}
LIGHT = {"torch", "numpy"}
KEPT_OUT: dict[str, set[str]] = {
    "core": WITHOUT_LIBRARIES | {"sklearn"},
    "native": WITHOUT_LIBRARIES - {"os"},  # SSFL_MAX_ISA
    "algorithms": WITHOUT_LIBRARIES,
    "wire": WITHOUT_LIBRARIES,
    "report": {"torch", "hydra", "omegaconf"},
    "report.runs": {"torch", "hydra", "omegaconf", "matplotlib"},
    "report.tables": {"torch", "hydra", "omegaconf", "matplotlib"},
    "report.figures": {"torch", "hydra", "omegaconf"},
    "code_version": LIGHT,
    "run_folder": LIGHT,
    "errors": LIGHT,
    "stop_signals": LIGHT,
    "settings": LIGHT,
    "cli": LIGHT,
    "cli_parser": LIGHT,
    "sweep": LIGHT,
    "sweep.launchers": LIGHT,
    "config": LIGHT,
}
"""Package -> libraries that it must not import."""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    package, names = package_of_path(path), imports_of(path)
    assert package in ALLOWED, f"{package}: new; say here and in docs/architecture.md what it may import"
    ours = {package_of_module(name) for name in names if name.partition(".")[0] == "ssfl"}
    assert ours - {package} <= ALLOWED[package]
    assert not {name.partition(".")[0] for name in names} & KEPT_OUT.get(package, set())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_config_reads_hydra(path: Path) -> None:
    libraries = {name.partition(".")[0] for name in imports_of(path)}
    assert package_of_path(path) == "config" or not libraries & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_at_home(path: Path) -> None:
    froms = [
        n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)
    ]
    taken = {alias.name for node in froms if (node.module or "").startswith("ssfl") for alias in node.names}
    assert not {name for name in taken if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("modules", ["ssfl.cli, ssfl.config", "ssfl.sweep.sweep", "ssfl.report"])
def test_torch_stays_out(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0
