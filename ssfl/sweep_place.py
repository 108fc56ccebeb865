"""Where a cell's process runs: on this machine, on Slurm through submitit, or on a Ray cluster.

A cell is a command that writes all it says to a log file; whoever started the sweep reads the log and asks whether
the command has ended. That is the same for all three places, so there is one display and one rule for failures.
On this machine a `Popen` already is what joblib or concurrent.futures would hand out (started, still running?, exit
code), and unlike a pool's threads it can be told to stop; so neither is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, final

from ssfl.sweep_cluster import Ray, Submitit
from ssfl.sweep_process import Local

LAUNCHERS = ("local", "submitit", "ray")


@final
class LauncherError(ValueError):
    """A launcher that does not exist, is not installed, or does not know an option; one line."""


class Job(Protocol):
    """A cell's process, wherever it runs."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""

    def exit_code(self) -> int:
        """After `done`: 0, 1, 2, 130 as `ssfl run` ends; 1 where the cluster lost it."""


class Launcher(Protocol):
    """A place for jobs."""

    here: bool
    """Whether Ctrl-C in this terminal reaches the jobs by itself."""

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start `command`; all that it prints is appended to `log`."""

    def stop(self) -> None:
        """End every job that this launcher started, leaving none behind."""


def launcher(name: str, folder: Path, jobs: int, options: Sequence[str]) -> Launcher:
    """The launcher `name`; submitit and Ray are imported only when they are asked for.

    Args:
        name: local | submitit | ray.
        folder: of the sweep; submitit keeps its files in folder/submitit, which the nodes must see too.
        jobs: most cells at a time, for sharing out this machine's cores.
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


def check_launcher(name: str, words: Sequence[str]) -> tuple[Any, dict[str, int | str]]:
    """The launcher's package (None for local) and the options read; raises as `launcher`, starts nothing."""
    options: dict[str, int | str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise LauncherError(f"--launcher-option {word}: give KEY=VALUE, such as timeout_min=240")
        options[key] = int(value) if value.isdigit() else value
    if name not in LAUNCHERS:
        raise LauncherError(f"--launcher {name}: unknown; allowed: {', '.join(LAUNCHERS)}")
    if name == "local":
        if words:
            raise LauncherError(f"--launcher-option {words[0]}: --launcher local takes no options")
        return None, options
    try:
        return importlib.import_module(name), options
    except ImportError:
        said = f"--launcher {name}: the package {name} is not installed"
        raise LauncherError(f"{said}; install it with: pip install {name}") from None
