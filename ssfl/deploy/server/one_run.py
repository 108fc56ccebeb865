"""The lock that allows one run at a time on a server: a site holds the network and the state of one run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.deploy.server.run_record import load_records
from ssfl.run_folder import try_lock

LOCK = "run.lock"


@contextlib.contextmanager
def one_run(home: Path | None, own: str) -> Iterator[None]:
    """Hold the server's folder until the block or the process ends. own: the run that is started again; "": a new one.

    Raises DeployError if another run is in progress, or waits for the supervisor to start it again.
    """
    if home is None:
        yield
        return
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a") as lock:
        held = not try_lock(lock)
        active = [r.run for r in load_records(home) if r.active]
        others = [run for run in active if held or run != own]
        if held or others:
            name = f"run {others[-1]}" if others else "another run"
            stop = f"ssfl deploy stop {others[-1]}" if others else "stop it"
            raise DeployError(f"{name} is in progress, and a server has one run at a time: wait, or {stop}")
        yield
