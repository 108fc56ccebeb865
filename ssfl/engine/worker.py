"""A worker process: one thread, one network, any client's job. Started by `processes.py`, ends with its parent."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from ssfl.engine.batched import BatchedExecutor
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.jobs import Job
from ssfl.engine.local import ClientRunner
from ssfl.engine.memory import keep_freed_memory
from ssfl.engine.shared import Arena, Receiver, dumps


def main(channel: int, down: int, up: int) -> None:
    """Serve over file descriptors inherited from the parent: a connection and two arenas."""
    keep_freed_memory()
    torch.set_num_threads(1)
    serve(Connection(channel), Arena(down), Arena(up))


def serve(channel: Connection, down: Arena, up: Arena) -> None:
    """Answer requests until the parent goes away."""

    def resolve(handle: Any) -> Tensor:
        _, offset, shape, dtype = handle
        return down.get(offset, shape, dtype)

    executor: SequentialExecutor | BatchedExecutor | None = None
    while True:
        try:
            raw = channel.recv_bytes()
        except (EOFError, OSError):
            return
        kind, body = Receiver(raw, resolve).load()
        up.reset()
        try:
            if executor is None:
                executor = prepared(*body)
                answer: Any = None
            else:
                answer = _answer(executor, kind, body)
            message = ("done", answer)
        except Exception as error:  # whatever fails here is the parent's to report, with its kind and text
            message = ("failed", sendable(error))
        channel.send_bytes(dumps(message, up, known=down.holds))


class RemoteError(RuntimeError):
    """What a worker raised and could not send as it is: says its kind and its text."""


def sendable(error: Exception) -> Exception:
    """The error itself, if it survives the way to the parent; else a RemoteError that tells of it."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:  # it holds a lock, a file, or is made from other arguments than those it keeps
        return RemoteError(f"{type(error).__name__}: {error}")
    return error


def prepared(runner: ClientRunner, block: int) -> SequentialExecutor | BatchedExecutor:
    """This worker's executor; its network gets memory of its own: it came as views of the parent's shared block."""
    runner.module.load_state_dict({k: v.clone() for k, v in runner.module.state_dict().items()}, assign=True)
    return BatchedExecutor(runner, block) if block > 1 else SequentialExecutor(runner)


def _answer(executor: SequentialExecutor | BatchedExecutor, kind: str, body: Any) -> Any:
    if kind == "predict":
        theta, first, last = body
        return executor.runner.predict_rows(theta, first, last)
    jobs: list[Job] = body
    return [
        (outcome.reply, None if outcome.state is job.state else outcome.state)
        for job, outcome in zip(jobs, executor.run(jobs), strict=True)
    ]
