"""The packages of the source: allowed imports, and the imports of a file."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.paths import ROOT

PACKAGE = ROOT / "ssfl"

PURE = {"core", "algorithms", "native", "errors", "wire"}
ALLOWED: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "output": {"errors"},
    "stop_signals": set(),
    "machine_memory": set(),
    "settings": {"errors"},
    "yaml_text": {"errors"},
    "event_fields": set(),
    "native": {"errors"},
    "core": {"native", "errors"},
    "algorithms": {"core", "errors", "settings"},
    "wire": {"core"},
    "deploy": {
        "",
        "core",
        "algorithms",
        "engine",
        "engine.accounting",
        "engine.client",
        "engine.executors",
        "engine.state",
        "data",
        "config",
        "assemble",
        "tracking",
        "report",
        "report.runs",
        "report.tables",
        "run_folder",
        "errors",
        "output",
        "settings",
        "wire",
        "engine.compute",
        "machine_memory",
    },
    "engine.compute": PURE,
    "engine.client": PURE | {"engine.compute"},
    "engine.executors": PURE | {"engine.compute", "engine.client", "engine.state"},
    "engine.accounting": PURE,
    "engine.state": PURE | {"engine.accounting", "engine.client", "output"},
    "engine": PURE
    | {"engine.compute", "engine.client", "engine.executors", "engine.accounting", "engine.state"},
    "data": {"core", "native", "errors", "output", "machine_memory"},
    "models": {"core", "errors"},
    "tracking": {"core", "errors", "event_fields"},
    "code_version": {""},
    "run_folder": {"errors", "code_version", "output"},
    "report.runs": {"run_folder", "errors", "event_fields", "yaml_text"},
    "report.figures": {"report.runs"},
    "report.paper": set(),
    "report.tables": {"report.runs", "report.paper"},
    "report.studies": {"report.runs", "report.paper", "report.tables", "report.figures", "run_folder"},
    "report": {
        "report.runs",
        "report.figures",
        "report.paper",
        "report.studies",
        "report.tables",
        "run_folder",
        "output",
    },
    "config": {"", "algorithms", "errors", "settings", "yaml_text"},
    "sweep.launchers": {"errors"},
    "sweep": {
        "",
        "config",
        "output",
        "report",
        "report.runs",
        "report.studies",
        "run_folder",
        "sweep.launchers",
    },
    "assemble": {
        "",
        "core",
        "algorithms",
        "engine",
        "engine.compute",
        "engine.client",
        "engine.executors",
        "engine.accounting",
        "engine.state",
        "data",
        "models",
        "native",
        "wire",
        "tracking",
        "report",
        "report.runs",
        "report.tables",
        "run_folder",
        "code_version",
        "config",
        "errors",
        "machine_memory",
        "output",
        "settings",
        "stop_signals",
    },
    "cli_parser": {"", "sweep.launchers", "deploy"},
    "cli": {
        "",
        "errors",
        "output",
        "cli_parser",
        "stop_signals",
        "config",
        "assemble",
        "sweep",
        "sweep.launchers",
        "report.tables",
        "deploy",
    },
    "__main__": {"cli"},
}
"""Package -> packages of ssfl that it may import ('' is ssfl/__init__.py, which only contains the version).

Packages within engine, report and sweep are separate from the files directly in these folders.
"""


def package_of_path(path: Path) -> str:
    """The entry of `ALLOWED` for a file."""
    return _package_of(path.relative_to(PACKAGE).with_suffix("").parts)


def package_of_module(name: str) -> str:
    """The entry of `ALLOWED` for a dotted name in ssfl."""
    return _package_of(tuple(name.split(".")[1:]))


def _package_of(parts: tuple[str, ...]) -> str:
    """The entry of `ALLOWED` that a module belongs to: "engine.client" for ("engine", "client", "runner")."""
    names = [name for name in parts if name != "__init__"]
    inner = ".".join(names[:2])
    if inner in ALLOWED:
        return inner
    return names[0] if names and names[0] in ALLOWED else (names[0] if _exists(names) else "")


def _exists(names: list[str]) -> bool:
    return bool(names) and ((PACKAGE / names[0]).is_dir() or (PACKAGE / f"{names[0]}.py").is_file())


def sources() -> list[Path]:
    """Every Python file of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
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
