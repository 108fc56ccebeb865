"""The code version of a run: checkouts, a digest of the sources, and where both are recorded."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch

import ssfl
from ssfl import run_folder
from ssfl.code_version import PACKAGE, _checkout, _digest, code_version
from ssfl.native import available


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


def test_a_run_records_it_with_the_instruction_set() -> None:
    recorded = json.loads(
        run_folder.environment_text({"instruction_set": torch.backends.cpu.get_cpu_capability()})
    )
    assert recorded["code"] == vars(code_version())
    assert recorded["instruction_set"] == torch.backends.cpu.get_cpu_capability()
