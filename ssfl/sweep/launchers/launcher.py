"""Launchers start the process of a run: on this machine, on Slurm through submitit, or on a Ray cluster.

A run is a command whose output goes to a log file; the sweep reads the log and polls whether the command has ended.
This is the same for all launchers, so progress and failures are handled in one place. On this machine `Popen` already
provides what joblib or concurrent.futures would (start, status, exit code), and can be stopped, unlike a pool's
threads; so neither is used.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, final

from ssfl.errors import UserError
from ssfl.sweep.launchers.cluster import Ray, Submitit
from ssfl.sweep.launchers.local import Local

LAUNCHERS = ("local", "submitit", "ray")


@final
class LauncherError(UserError):
    """A launcher that does not exist or is not installed, or an option that it does not know."""


class LaunchedRun(Protocol):
    """The process of a run."""

    def done(self) -> bool:
        """Whether it has ended, successfully or not."""

    def exit_code(self) -> int:
        """After `done`: the exit code of `ssfl run` (0, 1, 2 or 130); 1 if the cluster lost the job."""


class Launcher(Protocol):
    """Starts and stops jobs."""

    here: bool
    """Whether Ctrl-C in this terminal reaches the jobs directly."""

    def start(self, command: Sequence[str], log: Path) -> LaunchedRun:
        """Start `command`; its output is appended to `log`."""

    def stop(self) -> None:
        """End every job that this launcher started."""


def launcher(name: str, folder: Path, jobs: int, options: Sequence[str]) -> Launcher:
    """The launcher `name`; submitit and Ray are imported only if they are used.

    Args:
        name: local | submitit | ray.
        folder: the sweep's folder; submitit keeps its files in folder/submitit, which nodes must be able to read.
        jobs: maximum number of runs at a time, to divide this machine's cores.
        options: `KEY=VALUE`; submitit: those of `AutoExecutor.update_parameters` (timeout_min, slurm_partition,
            gpus_per_node, cpus_per_task, ...); ray: `address`, and a task's (num_cpus, num_gpus, ...); local: none.

    Raises:
        LauncherError: unknown name, package not installed, or an option that is refused.
    """
    library, given = check_launcher(name, options)
    try:
        if library is None:
            return Local(jobs)
        return Submitit(library, folder, given) if name == "submitit" else Ray(library, given)
    except (TypeError, ValueError, NameError, RuntimeError, ConnectionError) as error:
        raise LauncherError(f"--launcher {name}: {' '.join(str(error).split())}") from None


def check_launcher(name: str, words: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Returns the launcher's package (None for local) and the parsed options. Raises as `launcher`; starts nothing."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise LauncherError(f"--launcher-option {word}: give KEY=VALUE, such as timeout_min=240")
        options[key] = _value(value)
    if name not in LAUNCHERS:
        raise LauncherError(f"--launcher {name}: unknown; allowed: {', '.join(LAUNCHERS)}")
    if name == "local":
        if words:
            raise LauncherError(f"--launcher-option {words[0]}: --launcher local takes no options")
        return None, options
    try:
        return importlib.import_module(name), options
    except ImportError:
        what = f"--launcher {name}: the package {name} is not installed"
        raise LauncherError(f"{what}; install it with: pip install {name}") from None


def _value(text: str) -> Any:
    """Numbers, true, false, null and lists as in JSON; everything else is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
