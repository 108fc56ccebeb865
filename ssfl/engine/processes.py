"""Worker processes with one thread each: the executor for several cores.

Workers are started once. The data set and the initial network lie in shared memory that all map; a round's message to
a worker holds a job's numbers and offsets, the tensors themselves are written once for all. Which worker computes a
job changes nothing: draws are named by client and round, and every worker runs one thread like the sequential executor.
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
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.engine.jobs import Job, Outcome
from ssfl.engine.local import ClientRunner
from ssfl.engine.shared import Arena, Receiver, SentTensors, dumps
from ssfl.engine.shares import in_order, longest_first, row_slices

MAX_DEATHS = 3
"""How often one request may lose its worker before the run stops."""


class WorkerError(RuntimeError):
    """A worker process died again and again at the same work: names the work and what to look at."""


@dataclass
class Worker:
    """One child process and what connects us to it."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Connection
    up: Arena
    lifeline: int
    ready: bool = False
    """Whether it has answered the setup message."""
    unwanted: int = 0
    """Answers still to come that nobody waits for: their round broke off."""

    def close(self) -> None:
        """End the process: ask, then insist; free what connects us. Harmless when repeated."""
        if self.lifeline < 0:
            return
        self.channel.close()  # end of file here or on the lifeline makes the worker leave
        os.close(self.lifeline)
        self.lifeline = -1
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.up.close()


class ProcessExecutor:
    """Jobs over `workers` processes, `block` clients at a time; a dead worker is replaced, its jobs computed again.

    block 1: one client after the other, the sequential executor's bits. More: each worker is a batched executor, for
    models so small that a step is all overhead.
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
        self._say = say or (lambda text: print(text, file=sys.stderr))
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
        """The runner's."""
        return self.runner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One outcome a job, in the jobs' order; where clients train, the longest jobs start first."""
        by_size = longest_first(jobs, self.runner)
        groups = [by_size[i : i + self.block] for i in range(0, len(jobs), self.block)]
        requests = [("jobs", [jobs[i] for i in group]) for group in groups]
        answered = self._map(requests, range(len(requests)))
        return in_order(
            (index, Outcome(reply, jobs[index].state if state is None else state))
            for number, answers in answered
            for index, (reply, state) in zip(groups[number], answers, strict=True)
        )

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The test set in slices of whole evaluation batches, one slice a worker."""
        slices = row_slices(len(self.runner.federation.arrays.test_y), len(self._workers))
        requests = [("predict", (theta, a, b)) for a, b in slices]
        answers = [answer for _, answer in self._map(requests, range(len(requests)))]
        return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])

    def close(self) -> None:
        """End all workers and free the shared memory; harmless when repeated."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._down.close()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _map(self, requests: Sequence[Any], order: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """(number, answer) in the requests' order, computed in `order` by whoever is free."""
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
                for number in self._heard(busy):
                    answer = self._receive(number, sent)
                    if answer is _NONE_YET:
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
        finally:  # after an error, or where the outcomes are not wanted to the end
            for worker in self._workers:
                worker.unwanted += worker.number in busy

    def _heard(self, busy: dict[int, tuple[int, bytes]]) -> list[int]:
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
            mine = sent.original(offset, shape, dtype)
            return self._down.get(offset, shape, dtype).clone() if mine is None else mine

        try:
            raw = worker.channel.recv_bytes()
        except (EOFError, OSError):
            return _DIED
        if worker.ready and worker.unwanted:
            worker.unwanted -= 1
            return _NONE_YET
        kind, answer = Receiver(raw, resolve).load()
        if kind == "failed":
            return _Failure(answer)
        if not worker.ready:
            worker.ready = True
            return _NONE_YET
        return answer

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        up = Arena()
        fds = (theirs.fileno(), self._down.fd, up.fd, lifeline)
        command = [sys.executable, "-m", "ssfl.engine.worker_start", *map(str, fds)]
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
        """Start another worker for one that died, unless its work kills every one."""
        old = self._workers[number]
        old.close()
        code = old.process.returncode
        kind, body = request
        what = "the evaluation"
        if kind == "jobs":
            clients = ", ".join(str(job.instruction.client) for job in body)
            what = f"client {clients} ({body[0].phase})"
        if deaths >= MAX_DEATHS:
            raise WorkerError(
                f"{deaths} worker processes died at {what}, the last with exit code {code}; "
                "out of memory? Lower engine.workers. The last checkpoint is kept"
            )
        self._say(f"worker {number} died at {what} (exit code {code}); it is replaced")
        self._workers[number] = self._start(number)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A child started here inherits SIGINT blocked, from its first instruction: Ctrl-C is the parent's to answer."""
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
_NONE_YET = object()
