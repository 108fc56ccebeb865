"""A run's folder, outputs/EXP_NAME/TIME/: created atomically and locked by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ssfl.code_version import code_version
from ssfl.errors import UserError
from ssfl.output import sync_folder, write_atomically

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
CLIENT_MODELS = "client_models.safetensors"
CHECKPOINTS = "checkpoints"
CLIENTS = "clients"
REPORT = "report"
TABLE = "comparison.md"
"""File name in the report folder."""
DEBUG = "debug"
DEPLOYMENT = "deployment.json"
"""Only in the folders of deployed runs."""
LOCK = ".lock"


class FolderError(UserError):
    """A folder that is not a run folder, or is locked by another process."""


def create_run_folder(root: Path, name: str, files: Mapping[str, str]) -> Path:
    """Create root/name/TIME with these files, atomically, also after a power failure. Returns the new folder.

    The process's umask decides who can read it.
    """
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    hidden = parent / f".new-{secrets.token_hex(8)}"
    hidden.mkdir()
    try:
        for file, text in files.items():
            write_atomically(hidden / file, text.encode())
        made = _rename_to_time(hidden, parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync_folder(parent)
    return made


def _rename_to_time(hidden: Path, parent: Path) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    for attempt in range(10_000):
        target = parent / (stamp if not attempt else f"{stamp}-{attempt + 1}")
        if target.exists():
            continue
        with contextlib.suppress(OSError):  # another run took the name after the check
            hidden.rename(target)
            return target
    raise FolderError(f"{parent}: no free folder name for {stamp}")


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises FolderError if another process holds it. It is released when its process ends."""
    with (folder / LOCK).open("w") as lock:
        if not try_lock(lock):
            raise FolderError(f"{folder}: another process is running this; wait for it or stop it")
        yield


def is_owned(folder: Path) -> bool:
    """Whether another process holds the folder's lock now."""
    try:
        with (folder / LOCK).open("r") as lock:
            return not try_lock(lock, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def try_lock(file: IO[str] | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file until it is closed. Returns False if another process holds it.

    On a file system without locks every file counts as free.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def check_run_folder(folder: Path) -> None:
    """Raises FolderError unless `folder` is a run folder."""
    if not (folder / CONFIG).is_file():
        raise FolderError(
            f"{folder}: not a run folder (it has no {CONFIG}); give a folder that a run printed"
        )


def is_finished(folder: Path) -> bool:
    """Whether the run has finished: whether its model, or its clients' models, are completely written."""
    return finished_model(folder) is not None


def finished_model(folder: Path) -> Path | None:
    """The models that a finished run wrote; None if there is no such file, or only an incomplete one."""
    return next((folder / name for name in (MODEL, CLIENT_MODELS) if _is_whole(folder / name)), None)


def _is_whole(path: Path) -> bool:
    """Whether a file has a safetensors header and as many bytes as the header says."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                return False
            header = json.loads(file.read(length))
        ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
        return bool(8 + length + max(ends, default=0) == size)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def report_is_current(folder: Path) -> bool:
    """Whether a finished run's report is complete and newer than its models; its table is written last."""
    try:
        model = finished_model(folder)
        return model is None or (folder / REPORT / TABLE).stat().st_mtime >= model.stat().st_mtime
    except OSError:
        return False


def environment(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything besides the configuration on which a run's results depend; `facts` are added."""
    packages = ("ssfl", "torch", "numpy", "hydra-core", "omegaconf", "safetensors", "scikit-learn")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        **facts,
        "code": asdict(code_version()),
        "packages": {name: _version(name) for name in packages},
        "command": sys.argv,
    }


def environment_text(facts: Mapping[str, Any]) -> str:
    """`environment` as JSON."""
    return json.dumps(environment(facts), indent=2) + "\n"


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
