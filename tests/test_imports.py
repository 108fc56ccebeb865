"""The arrows of docs/architecture.md: who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ssfl"

ALLOWED: dict[str, set[str]] = {
    "core": {"native"},
    "algorithms": {"core"},
    "native": set(),
    "engine": {"core", "algorithms", "native"},
    "deploy": {"core", "algorithms", "engine", "data"},
    "data": {"core", "native"},
    "models": {"core"},
    "tracking": {"core"},
    "report": {"core"},
    "config": {""},
    "sweep": {"config", "report", "sweep_cells", "sweep_folder", "sweep_place", "sweep_runner"},
    "sweep_cells": {"config"},
    "sweep_folder": {"config", "sweep_cells"},
    "sweep_runner": {"report", "sweep_cells", "sweep_folder", "sweep_place", "sweep_process"},
    "sweep_place": {"sweep_cluster", "sweep_process"},
    "sweep_cluster": {"sweep_process"},
    "sweep_process": set(),
    "assemble": {
        "",
        "core",
        "algorithms",
        "engine",
        "data",
        "models",
        "native",
        "tracking",
        "report",
        "config",
    },
    "cli": {"", "cli_parser", "config", "assemble", "sweep", "report"},
    "cli_parser": {""},
    "__main__": {"cli"},
    "": set(),
}
"""Room → rooms of ours that it may import ('' is ssfl/__init__.py, which holds the version only)."""

KEPT_OUT: dict[str, set[str]] = {
    "core": {
        "hydra",
        "omegaconf",
        "rich",
        "matplotlib",
        "os",
        "pathlib",
        "socket",
        "time",
        "random",
        "sklearn",
    },
    "native": {"hydra", "omegaconf", "rich", "matplotlib", "os", "pathlib", "socket", "time", "random"},
    "algorithms": {"hydra", "omegaconf", "rich", "matplotlib", "os", "pathlib", "socket", "time", "random"},
    "report": {"torch", "hydra", "omegaconf"},
    "cli": {"torch", "numpy"},
    "cli_parser": {"torch", "numpy"},
    "sweep": {"torch", "numpy"},
    "sweep_cells": {"torch", "numpy"},
    "sweep_folder": {"torch", "numpy"},
    "sweep_runner": {"torch", "numpy"},
    "sweep_place": {"torch", "numpy"},
    "sweep_cluster": {"torch", "numpy"},
    "sweep_process": {"torch", "numpy"},
    "config": {"torch", "numpy"},
}
"""Room → libraries that it must do without."""


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").replace("__init__", "")


def _sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Dotted names imported anywhere in a file, inside functions and type checks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"ssfl.{alias.name}" for alias in node.names} if module == "ssfl" else {module}
    return names


def _room_of_module(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 1:
        return ""
    known = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
    return parts[1] if known else ""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    room, names = _room(path), _imports(path)
    assert room in ALLOWED, f"{room}: a new room; say here and in docs/architecture.md whom it may import"
    ours = {_room_of_module(name) for name in names if name.partition(".")[0] == "ssfl"}
    assert ours - {room} <= ALLOWED[room]
    assert not {name.partition(".")[0] for name in names} & KEPT_OUT.get(room, set())


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_config_reads_hydra(path: Path) -> None:
    libraries = {name.partition(".")[0] for name in _imports(path)}
    assert _room(path) == "config" or not libraries & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_stay_at_home(path: Path) -> None:
    froms = [
        n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)
    ]
    taken = {alias.name for node in froms if (node.module or "").startswith("ssfl") for alias in node.names}
    assert not {name for name in taken if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("modules", ["ssfl.cli, ssfl.config", "ssfl.sweep", "ssfl.report"])
def test_torch_stays_out(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0
