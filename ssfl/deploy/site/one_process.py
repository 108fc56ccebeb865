"""The lock that allows one process for each site: a second one with the same key or state folder is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.run_folder import LOCK, try_lock


@contextlib.contextmanager
def one_process(state: Path | None, key: Path | None) -> Iterator[None]:
    """Hold the site's state folder and its key, until the block or the process ends.

    Raises DeployError if another process on this machine holds one of them: both would use one node of the SuperLink
    and take each other's messages. File systems without locks are accepted.
    """
    with contextlib.ExitStack() as held:
        if state is not None:
            held.enter_context(_locked(state / LOCK, os.O_RDWR | os.O_CREAT, f"--state {state}"))
        if key is not None:
            held.enter_context(_locked(key, os.O_RDONLY, str(key)))
        yield


@contextlib.contextmanager
def _locked(path: Path, flags: int, what: str) -> Iterator[None]:
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise DeployError(f"{what}: {error.strerror}") from None
    try:
        if not try_lock(descriptor):
            text = "another process of this site uses it; stop that process, or register another site"
            raise DeployError(f"{what}: {text}")
        yield
    finally:
        os.close(descriptor)
