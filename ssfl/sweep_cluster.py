"""Cells on a cluster: Slurm through submitit, or Ray. Both run `run_command` on a node that sees our folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from ssfl.sweep_process import run_command


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
