"""Where a cell's process runs: on this machine, on Slurm through submitit, or on a Ray cluster.

A cell is a command that writes all it says to a log file; whoever started the sweep reads the log and asks whether
the command has ended. That is the same for all three places, so there is one display and one rule for failures.
On this machine a `Popen` already is what joblib or concurrent.futures would hand out (started, still running?, exit
code), and unlike a pool's threads it can be told to stop; so neither is used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

CLEAN_END_SECONDS = 5.0
"""How long an interrupted cell may take to write its last checkpoint."""
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


@final
class Local:
    """Processes on this machine; with several at a time each keeps to its own share of the cores.

    Without that, every cell would choose its workers and threads as if it were alone, and all would wait for each
    other.
    """

    here = True

    def __init__(self, jobs: int) -> None:
        self._places: list[_Child | None] = [None] * jobs

    def start(self, command: Sequence[str], log: Path) -> _Child:
        """Start a process in the first free place."""
        place = next(
            (i for i, child in enumerate(self._places) if child is None or child.done()), len(self._places)
        )
        self._places += [None] * (place + 1 - len(self._places))
        child = _Child(command, log)
        self._places[place] = child
        _keep_to(child.pid, place, len(self._places))
        return child

    def stop(self) -> None:
        """Ctrl-C reaches children by itself (same terminal): give them time, tell them again, then kill."""
        running = [child for child in self._places if child is not None and not child.done()]
        for number in (None, signal.SIGINT, signal.SIGKILL):
            for child in running:
                if number is not None:
                    child.send(number)
            until = time.monotonic() + CLEAN_END_SECONDS
            while running and time.monotonic() < until:
                running = [child for child in running if not child.done()]
                time.sleep(0.02)


@final
class _Child:
    """A process of this machine."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as copy:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=copy, stderr=subprocess.STDOUT
            )
        self.pid = self._process.pid

    def done(self) -> bool:
        return self._process.poll() is not None

    def exit_code(self) -> int:
        return self._process.wait()

    def send(self, number: int) -> None:
        self._process.send_signal(number)


def _keep_to(pid: int, place: int, places: int) -> None:
    """Tie a process to its share of the cores, where the system can (Linux) and cells would meet."""
    if places == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[place::places] or [cores[place % len(cores)]]
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.sched_setaffinity(pid, share)


def run_command(command: Sequence[str], log: str, folder: str) -> int:
    """What a node of a cluster runs: the command to its end, in `folder`, its words to `log`; gives the exit code.

    A cancelled task (Ray raises KeyboardInterrupt in it) gives the cell time for its last checkpoint.
    """
    with Path(log).open("ab") as copy:
        process = subprocess.Popen(command, cwd=folder, stdout=copy, stderr=subprocess.STDOUT)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(CLEAN_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _remote_words(command: Sequence[str], log: Path) -> tuple[list[str], str, str]:
    """Arguments of `run_command`: a node's working directory may be another, so ours goes with them."""
    return list(command), str(log.absolute()), str(Path.cwd())


@final
class Submitit:
    """Jobs of Slurm (or, without `srun`, submitit's own on this machine); written against submitit's documented API.

    A job that is cut off at its time limit counts as failed, and its second attempt resumes its checkpoint.
    """

    here = False

    def __init__(self, library: Any, folder: Path, options: Mapping[str, int | str]) -> None:
        self._executor = library.AutoExecutor(folder=str(folder / "submitit"))
        self._executor.update_parameters(**{"name": "ssfl", **options})
        self._jobs: list[_SubmititJob] = []

    def start(self, command: Sequence[str], log: Path) -> _SubmititJob:
        """Hand a job to the queue."""
        self._jobs.append(_SubmititJob(self._executor.submit(run_command, *_remote_words(command, log))))
        return self._jobs[-1]

    def stop(self) -> None:
        """Take back what has not ended."""
        for job in self._jobs:
            if not job.done():
                job.job.cancel()


@final
class _SubmititJob:
    """submitit's job."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def done(self) -> bool:
        return bool(self.job.done())

    def exit_code(self) -> int:
        try:
            return int(self.job.result())
        except Exception:  # lost, killed or out of memory: submitit raises several kinds, all mean failed
            return 1


@final
class Ray:
    """Tasks of Ray, on the cluster at `address` (or RAY_ADDRESS, or a new one on this machine)."""

    here = False

    def __init__(self, library: Any, options: Mapping[str, int | str]) -> None:
        self._ray = library
        rest = {key: value for key, value in options.items() if key != "address"}
        library.init(address=options.get("address"), ignore_reinit_error=True, log_to_driver=False)
        # The sweep itself tries once more, from the checkpoint; Ray would start from nothing.
        self._task = library.remote(run_command).options(**{"max_retries": 0, **rest})
        self._jobs: list[_RayJob] = []

    def start(self, command: Sequence[str], log: Path) -> _RayJob:
        """Hand a task to the cluster."""
        self._jobs.append(_RayJob(self._ray, self._task.remote(*_remote_words(command, log))))
        return self._jobs[-1]

    def stop(self) -> None:
        """Cancel what has not ended; without force, so that it can still write its checkpoint."""
        for job in self._jobs:
            if not job.done():
                self._ray.cancel(job.reference)


@final
class _RayJob:
    """Ray's task."""

    def __init__(self, library: Any, reference: Any) -> None:
        self._ray, self.reference = library, reference

    def done(self) -> bool:
        ready, _ = self._ray.wait([self.reference], timeout=0)
        return bool(ready)

    def exit_code(self) -> int:
        try:
            return int(self._ray.get(self.reference))
        except Exception:  # the task raised, or its node went away
            return 1


@final
class Tail:
    """What a file has gained since the last look, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._half = b""

    def lines(self) -> Iterator[str]:
        """New lines, without their ends."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                gained = file.read()
        except OSError:  # not written yet, or a network file system that lags
            return
        self._position += len(gained)
        *whole, self._half = (self._half + gained).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
