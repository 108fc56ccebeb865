"""A run's folder: outputs/EXP_NAME/TIME/, made whole at once, owned by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
CLIENT_MODELS = "client_models.safetensors"
CHECKPOINTS = "checkpoints"
CLIENTS = "clients"
REPORT = "report"
_LOCK = ".lock"


class FolderError(ValueError):
    """A folder that is no run, or that another process is writing."""


def create_run_folder(root: Path, name: str, files: Mapping[str, str]) -> Path:
    """root/name/TIME with `files` in it; appears whole or not at all; never one that exists."""
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        for file, text in files.items():
            (hidden / file).write_text(text)
        hidden.chmod(0o755)
        return _rename_to_time(hidden, parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def _rename_to_time(hidden: Path, parent: Path) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    for attempt in range(10_000):
        target = parent / (stamp if not attempt else f"{stamp}-{attempt + 1}")
        if target.exists():
            continue
        with contextlib.suppress(OSError):  # another run took the name between the look and the rename
            hidden.rename(target)
            return target
    raise FolderError(f"{parent}: no free folder name for {stamp}")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; FolderError when another process does. The lock dies with its process."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(f"{folder}: another process is running this; wait for it or stop it") from error
        yield


def check_run_folder(folder: Path) -> None:
    """FolderError unless `folder` was made by a run."""
    if not (folder / CONFIG).is_file():
        raise FolderError(f"{folder}: no run here (it has no {CONFIG}); give a folder that a run printed")


def is_finished(folder: Path) -> bool:
    """Whether the run ended: its model, or its clients' models, are written last."""
    return (folder / MODEL).exists() or (folder / CLIENT_MODELS).exists()


def environment() -> dict[str, Any]:
    """What the numbers of this run depend on besides its configuration."""
    packages = ("ssfl", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "command": sys.argv,
    }


def environment_text() -> str:
    """`environment()` as JSON."""
    return json.dumps(environment(), indent=2) + "\n"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
