"""Locks that allow one process for each server folder, site state folder and site key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.run_folder import LOCK, try_lock


@contextlib.contextmanager
def one_site_process(state: Path | None, key: Path | None) -> Iterator[None]:
    """Lock the site's state folder and its key until the block or the process ends.

    Raises DeployError if another process on this machine holds one of them: both would use one node of the SuperLink
    and take each other's messages. File systems without locks are accepted.
    """
    remedy = "another process of this site uses it; stop that process, or register another site"
    with contextlib.ExitStack() as held:
        if state is not None:
            held.enter_context(_locked(state / LOCK, os.O_RDWR | os.O_CREAT, f"--state {state}", remedy))
        if key is not None:
            held.enter_context(_locked(key, os.O_RDONLY, str(key), remedy))
        yield


@contextlib.contextmanager
def one_server_process(folder: Path) -> Iterator[None]:
    """Lock the server's folder until the block or the process ends.

    Raises DeployError if a server with this folder is running: a second one would resume the runs of the first.
    """
    with _locked(
        folder / LOCK,
        os.O_RDWR | os.O_CREAT,
        f"--folder {folder}",
        "a server with this folder is running; stop it first (`ssfl deploy status` shows its state)",
    ):
        yield


@contextlib.contextmanager
def _locked(path: Path, flags: int, what: str, remedy: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise DeployError(f"{what}: {error.strerror}") from None
    try:
        if not try_lock(descriptor):
            raise DeployError(f"{what}: {remedy}")
        yield
    finally:
        os.close(descriptor)
