"""Runs of a sweep on a cluster: Slurm through submitit, or Ray. Both call `run_command` on a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from ssfl.sweep.launchers.local import run_command


def _remote_words(command: Sequence[str], log: Path) -> tuple[list[str], str, str]:
    """Arguments of `run_command`, with our working directory, because a node's may differ."""
    return list(command), str(log.absolute()), str(Path.cwd())


@final
class Submitit:
    """Jobs on Slurm (or, without `srun`, submitit's local jobs), with submitit's documented API.

    A job that reaches its time limit counts as failed; its second attempt resumes from its checkpoint.
    """

    here = False

    def __init__(self, library: Any, folder: Path, options: Mapping[str, Any]) -> None:
        self._executor = library.AutoExecutor(folder=str(folder / "submitit"))
        self._executor.update_parameters(**{"name": "ssfl", **options})
        self._jobs: list[_SubmititJob] = []

    def start(self, command: Sequence[str], log: Path) -> _SubmititJob:
        """Submit a job."""
        self._jobs.append(_SubmititJob(self._executor.submit(run_command, *_remote_words(command, log))))
        return self._jobs[-1]

    def stop(self) -> None:
        """Cancel jobs that have not ended."""
        for job in self._jobs:
            if not job.done():
                job.job.cancel()


@final
class _SubmititJob:
    """A job of submitit."""

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
    """Ray tasks on the cluster at `address` (or RAY_ADDRESS, or a new local one)."""

    here = False

    def __init__(self, library: Any, options: Mapping[str, Any]) -> None:
        self._ray = library
        rest = {key: value for key, value in options.items() if key != "address"}
        library.init(address=options.get("address"), ignore_reinit_error=True, log_to_driver=False)
        # The sweep repeats a failed run from its checkpoint; Ray would start it from the beginning.
        self._task = library.remote(run_command).options(**{"max_retries": 0, **rest})
        self._jobs: list[_RayJob] = []

    def start(self, command: Sequence[str], log: Path) -> _RayJob:
        """Submit a task."""
        self._jobs.append(_RayJob(self._ray, self._task.remote(*_remote_words(command, log))))
        return self._jobs[-1]

    def stop(self) -> None:
        """Cancel tasks that have not ended; without force, so that they can still write a checkpoint."""
        for job in self._jobs:
            if not job.done():
                self._ray.cancel(job.reference)


@final
class _RayJob:
    """A task of Ray."""

    def __init__(self, library: Any, reference: Any) -> None:
        self._ray, self.reference = library, reference

    def done(self) -> bool:
        ready, _ = self._ray.wait([self.reference], timeout=0)
        return bool(ready)

    def exit_code(self) -> int:
        try:
            return int(self._ray.get(self.reference))
        except Exception:  # the task failed, or its node was lost
            return 1
