"""The code version of a run: checkouts, a digest of the sources, and where both are recorded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssfl
from ssfl import code_version as module
from ssfl import run_folder
from ssfl.assemble.lifecycle import machine_facts
from ssfl.code_version import PACKAGE, _checkout, _digest, code_version
from ssfl.native import available, library
from ssfl.report.runs.run import Run


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", "-C", str(folder), *name, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of one commit."""
    root = tmp_path.resolve() / "checkout"
    (root / "inside").mkdir(parents=True)
    (root / "a.py").write_text("a = 1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_a_checkout_is_named_by_its_commit_and_by_changes_of_tracked_files(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert _checkout(checkout) == (commit, False)
    (checkout / "untracked.txt").write_text("")
    assert _checkout(checkout) == (commit, False)
    (checkout / "a.py").write_text("a = 2\n")
    assert _checkout(checkout) == (commit, True)


def test_below_another_checkout_or_without_one_nothing_is_named(checkout: Path, tmp_path: Path) -> None:
    assert _checkout(checkout / "inside") == (None, None)
    assert _checkout(tmp_path.resolve()) == (None, None)


def test_without_git_nothing_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _checkout(checkout) == (None, None)


def test_the_digest_follows_contents_and_names(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        for old in tmp_path.glob("*.py"):
            old.unlink()
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return _digest(tmp_path, sorted(tmp_path.glob("*.py")))

    first = digest(a="1", b="2")
    assert first == digest(a="1", b="2") == hashlib.sha256(b"a.py\x001b.py\x002").hexdigest()[:16]
    assert len({first, digest(a="2", b="1"), digest(a="1", c="2"), digest(a="1")}) == 4


def test_this_packages_own() -> None:
    found = code_version()
    files = sorted(p for p in PACKAGE.rglob("*.py"))
    whole = b"".join(f"{p.relative_to(PACKAGE).as_posix()}\0".encode() + p.read_bytes() for p in files)
    assert found.sources == hashlib.sha256(whole).hexdigest()[:16]
    assert found.version == ssfl.__version__
    assert (found.kernels is not None) == available()
    in_c = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".c", ".h"))
    whole = b"".join(f"{p.relative_to(PACKAGE).as_posix()}\0".encode() + p.read_bytes() for p in in_c)
    digest = hashlib.sha256(whole).hexdigest()[:16]
    assert found.kernel_sources == (digest if available() and in_c else None)


def test_a_change_of_the_kernels_in_c_alone_is_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "_kernels", lambda: "compiled")
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "a.c").write_text("int a = 1;\n")
    versions = []
    for text in ("int a = 1;\n", "int a = 2;\n"):
        (tmp_path / "a.c").write_text(text)
        versions.append(code_version.__wrapped__())
    assert versions[0].sources == versions[1].sources
    codes = [Run(tmp_path, {}, (), {"code": vars(version)}).code for version in versions]
    assert codes == [f"{version.sources}-{version.kernel_sources}" for version in versions]
    assert codes[0] != codes[1]


RECORDS: dict[str, tuple[dict[str, str | None], str]] = {
    "before kernel_sources was recorded": ({"sources": "a", "kernels": "b"}, "a"),
    "with kernels": ({"sources": "a", "kernels": "b", "kernel_sources": "c"}, "a-c"),
    "kernels without their C files": ({"sources": "a", "kernels": "b", "kernel_sources": None}, "a-b"),
    "without kernels": ({"sources": "a", "kernels": None, "kernel_sources": None}, "a"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_runs_version_from_its_record(case: str) -> None:
    record, expected = RECORDS[case]
    assert Run(Path("mine"), {}, (), {"code": record}).code == expected


def test_a_run_records_it() -> None:
    assert json.loads(run_folder.environment_text({}))["code"] == vars(code_version())


def test_instruction_sets_of_pytorch_and_of_the_kernels_are_recorded() -> None:
    facts = machine_facts()
    assert facts["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert facts["kernels_instruction_set"] == library.isa()


@pytest.mark.skipif("avx2" not in library.usable(), reason="kernels without AVX2")
def test_a_limit_of_the_kernels_instruction_set_is_recorded() -> None:
    program = "from ssfl.assemble.lifecycle import machine_facts; print(machine_facts())"
    limited = {**os.environ, "SSFL_MAX_ISA": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=limited, capture_output=True, text=True, check=True
    )
    assert "'kernels_instruction_set': 'avx2'" in done.stdout
