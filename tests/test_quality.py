"""Lint, format, types and packaging of the checkout, as tests."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def _needs(tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: bash setup.sh --dev")


def test_ruff_finds_nothing() -> None:
    _needs("ruff")
    _run("ruff", "check", ".")


def test_every_file_is_formatted() -> None:
    _needs("ruff")
    _run("ruff", "format", "--check", ".")


def test_types_hold() -> None:
    _needs("mypy")
    _run("mypy")


def test_tests_share_helpers_not_each_other() -> None:
    """Helpers are in tests/support, or in a separate module next to the tests."""
    pattern = re.compile(r"^(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    taken = {str(p.relative_to(ROOT)) for p in sources if pattern.search(p.read_text(encoding="utf-8"))}
    # The program of a separate process, which uses definitions of this file.
    assert taken <= {"tests/native/test_parallel.py"}


def test_every_package_is_installed_with_the_wheel() -> None:
    # The list in pyproject.toml is written by hand because conf/ is mapped into the package.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"\[tool\.setuptools\]\s*packages = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    named = set(re.findall(r'"([^"]+)"', listed.group(1)))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ssfl").rglob("__init__.py")}
    assert named == found | {"ssfl.conf"}


def test_constraints_pin_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert any(pin.startswith("torch==") for pin in pins)
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; .*)?", pin)] == []


def test_versions_agree() -> None:
    import ssfl

    for file, pattern in (
        ("pyproject.toml", r'^version = "(.+)"'),
        ("CITATION.cff", r'^version: "?([\d.]+)'),
    ):
        stated = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert stated is not None
        assert stated.group(1) == ssfl.__version__
