"""The version of the code of a run: a digest of the sources, and the commit if it is in a checkout."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

import ssfl

PACKAGE = Path(ssfl.__file__).resolve().parent
_GIT_SECONDS = 10.0


@final
@dataclass(frozen=True)
class CodeVersion:
    """Identifies the code of a run."""

    version: str
    """Version of the package."""
    sources: str
    """The first 16 hex digits of a SHA-256 over the package's Python files."""
    kernels: str | None
    """The same over the compiled kernels, which differs between compilers and build folders; None if they were not
    built."""
    kernel_sources: str | None
    """The same over the C files of the kernels; None if they were not built, or installed without their C files."""
    commit: str | None
    """The checkout's commit; None if the package is not in a checkout, or git is not installed."""
    modified: bool | None
    """Whether tracked files of the checkout differ from that commit; None if `commit` is None."""


@cache
def code_version() -> CodeVersion:
    """The version of the imported package, from its files at the first call."""
    files = sorted(PACKAGE.rglob("*.py"))
    commit, modified = _checkout(PACKAGE.parent)
    kernels = _kernels()
    in_c = sorted(file for suffix in ("*.c", "*.h") for file in PACKAGE.rglob(suffix))
    kernel_sources = _digest(PACKAGE, in_c) if kernels and in_c else None
    return CodeVersion(ssfl.__version__, _digest(PACKAGE, files), kernels, kernel_sources, commit, modified)


def _digest(root: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def _kernels() -> str | None:
    found = importlib.util.find_spec("ssfl.native.kernels")
    if found is None or found.origin is None:
        return None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def _checkout(folder: Path) -> tuple[str | None, bool | None]:
    """Commit and whether tracked files were changed, if `folder` is the root of a checkout."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    # A package installed inside another project's checkout is not part of that project.
    if top is None or Path(top).resolve() != folder or commit is None or changes is None:
        return None, None
    return commit, bool(changes)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
