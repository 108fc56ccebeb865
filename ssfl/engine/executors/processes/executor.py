"""Worker processes with one thread each: an executor for several cores.

Workers are started once. The data set and the initial network are in shared memory that all workers map. A message to a
worker contains a job's numbers and offsets; tensors are written once for all workers. The assignment of jobs to workers
does not change results: streams are named by client and round, and every worker uses one thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.engine.client.data_source import evaluation_labels
from ssfl.engine.client.errors import EngineError
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.example_rules import is_ordinary
from ssfl.engine.executors.processes.shared_memory import Arena, Receiver, SentTensors, dumps
from ssfl.engine.executors.scheduling import in_order, longest_first, row_slices
from ssfl.errors import UserError

MAX_DEATHS = 3
"""Number of workers that may die during one request before the run stops."""


class WorkerError(EngineError):
    """Worker processes died repeatedly during the same work."""


class UnsendableError(UserError):
    """A network that cannot be sent to worker processes; the message gives the reason and an alternative."""


def check_sendable(module: nn.Module) -> None:
    """Raises UnsendableError for a network that cannot be pickled (computed weights)."""
    if is_ordinary(module):
        return
    with contextlib.closing(Arena()) as arena:
        try:
            dumps(module, arena)
        except Exception as error:  # a network's code may raise any error
            words = " ".join(str(error).split())[:160]
            raise UnsendableError(
                f"engine.executor=processes: this network cannot be sent to another process ({words}); "
                "use engine.executor=sequential or threads"
            ) from error


@dataclass
class Worker:
    """One child process and the connection to it."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Connection
    up: Arena
    lifeline: int
    ready: bool = False
    """Whether it has answered the setup message."""
    unwanted: int = 0
    """Number of expected answers to discard, because their round was aborted."""

    def close(self) -> None:
        """End the process, by SIGKILL if necessary, and close the connection. May be called again."""
        if self.lifeline < 0:
            return
        self.channel.close()  # end of file on the channel or the lifeline ends the worker
        os.close(self.lifeline)
        self.lifeline = -1
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.up.close()


class ProcessExecutor:
    """Computes jobs on `workers` processes, `block` clients at a time; a dead worker is replaced, its jobs repeated.

    block 1: one client after another, with the bits of the sequential executor. More: each worker is a batched
    executor, for models so small that a step is mostly overhead.
    """

    def __init__(
        self,
        runner: ClientRunner,
        workers: int,
        say: Callable[[str], None] | None = None,
        block: int = 1,
    ) -> None:
        self.runner = runner
        self.block = block
        self._warn = say or (lambda text: print(text, file=sys.stderr))
        self._down = Arena()
        self._setup = dumps(("runner", (runner, block)), self._down)
        self._setup_used = self._down.used
        self._workers: list[Worker] = []
        try:
            self._workers = [self._start(n) for n in range(workers)]
        except BaseException:
            self.close()
            raise

    @property
    def layout(self) -> Layout:
        """The layout of the runner's network."""
        return self.runner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        """One outcome a job, in the jobs' order; if clients train, the longest jobs start first."""
        by_size = longest_first(jobs, self.runner)
        groups = [by_size[i : i + self.block] for i in range(0, len(jobs), self.block)]
        requests = [("jobs", [jobs[i] for i in group]) for group in groups]
        answered = self._map(requests, range(len(requests)))
        return in_order(
            (index, outcome)
            for number, outcomes in answered
            for index, outcome in zip(groups[number], outcomes, strict=True)
        )

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See `Executor.predict`; in slices of whole evaluation batches, one slice a worker."""
        slices = row_slices(len(evaluation_labels(self.runner.federation)), len(self._workers))
        requests = [("predict", (theta, a, b)) for a, b in slices]
        answers = [answer for _, answer in self._map(requests, range(len(requests)))]
        return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])

    def close(self) -> None:
        """End all workers and free the shared memory. May be called again."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._down.close()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _map(self, requests: Sequence[Any], order: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Yields (number, answer) in the requests' order; free workers compute them in `order`."""
        self._down.used = self._setup_used
        sent = SentTensors()
        waiting = [(i, dumps(requests[i], self._down, sent)) for i in reversed(order)]
        busy: dict[int, tuple[int, bytes]] = {}
        answers: dict[int, Any] = {}
        deaths: dict[int, int] = {}
        given = 0
        try:
            while given < len(requests):
                for worker in self._workers:
                    if worker.number not in busy and waiting:
                        busy[worker.number] = waiting.pop()
                        self._send(worker, busy[worker.number][1])
                for number in self._answering(busy):
                    answer = self._receive(number, sent)
                    if answer is _NO_ANSWER:
                        continue
                    request = busy.pop(number)
                    if answer is _DIED:
                        deaths[request[0]] = deaths.get(request[0], 0) + 1
                        self._replace(number, requests[request[0]], deaths[request[0]])
                        waiting.append(request)
                    elif isinstance(answer, _Failure):
                        raise answer.error
                    else:
                        answers[request[0]] = answer
                while given in answers:
                    yield given, answers.pop(given)
                    given += 1
        finally:  # after an error, or if the caller stops early
            for worker in self._workers:
                worker.unwanted += worker.number in busy

    def _answering(self, busy: dict[int, tuple[int, bytes]]) -> list[int]:
        channels = {self._workers[n].channel: n for n in busy}
        return [channels[c] for c in wait(list(channels))]  # type: ignore[index]

    def _send(self, worker: Worker, raw: bytes) -> None:
        with contextlib.suppress(OSError):  # a dead worker is noticed when its answer is read
            worker.channel.send_bytes(raw)

    def _receive(self, number: int, sent: SentTensors) -> Any:
        worker = self._workers[number]

        def resolve(handle: Any) -> Tensor:
            kind, offset, shape, dtype = handle
            if kind == "sent":
                return worker.up.get(offset, shape, dtype).clone()
            original = sent.original(offset, shape, dtype)
            return self._down.get(offset, shape, dtype).clone() if original is None else original

        try:
            raw = worker.channel.recv_bytes()
        except (EOFError, OSError):
            return _DIED
        if worker.ready and worker.unwanted:
            worker.unwanted -= 1
            return _NO_ANSWER
        kind, answer = Receiver(raw, resolve).load()
        if kind == "failed":
            return _Failure(answer)
        if not worker.ready:
            worker.ready = True
            return _NO_ANSWER
        return answer

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        up = Arena()
        fds = (theirs.fileno(), self._down.fd, up.fd, lifeline)
        command = [sys.executable, "-m", "ssfl.engine.executors.processes.worker_start", *map(str, fds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
        with _interrupts_held():
            process = subprocess.Popen(
                command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        theirs.close()
        os.close(lifeline)
        worker = Worker(number, process, Connection(ours.detach()), up, held)
        self._send(worker, self._setup)
        return worker

    def _replace(self, number: int, request: Any, deaths: int) -> None:
        """Start a new worker for one that died. Raises WorkerError after MAX_DEATHS."""
        old = self._workers[number]
        old.close()
        code = old.process.returncode
        kind, body = request
        what = "the evaluation"
        if kind == "jobs":
            clients = ", ".join(str(job.client) for job in body)
            what = f"client {clients} ({body[0].phase})"
        if deaths >= MAX_DEATHS:
            raise WorkerError(
                f"{deaths} worker processes died during {what}, the last with exit code {code}; "
                "out of memory? Lower engine.workers. The last checkpoint is kept"
            )
        self._warn(f"worker {number} died during {what} (exit code {code}); it is replaced")
        self._workers[number] = self._start(number)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Context in which started children inherit a blocked SIGINT: only the parent handles Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class _Failure:
    """A request that raised in the worker."""

    error: Exception


_DIED = object()
_NO_ANSWER = object()
