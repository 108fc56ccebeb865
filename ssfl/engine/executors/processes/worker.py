"""A worker process: one thread, one network, any client's job. Started by `executor.py`; ends with its parent."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from ssfl.core.tensor_roles import in_own_memory
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.malloc import keep_freed_memory
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.processes.shared_memory import Arena, Receiver, dumps
from ssfl.engine.executors.sequential import SequentialExecutor


def main(channel: int, down: int, up: int) -> None:
    """Serve over file descriptors inherited from the parent: a connection and two arenas."""
    keep_freed_memory()
    torch.set_num_threads(1)
    serve(Connection(channel), Arena(down), Arena(up))


def serve(channel: Connection, down: Arena, up: Arena) -> None:
    """Answer requests until the parent ends."""

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
        except Exception as error:  # the parent reports the error
            message = ("failed", sendable(error))
        channel.send_bytes(dumps(message, up, known=down.holds))


class RemoteError(RuntimeError):
    """An error of a worker that cannot be pickled, with its type and text."""


def sendable(error: Exception) -> Exception:
    """The error itself if it can be pickled, otherwise a RemoteError with its type and text."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:  # it contains a lock or a file, or its constructor takes other arguments
        return RemoteError(f"{type(error).__name__}: {error}")
    return error


def prepared(runner: ClientRunner, block: int) -> SequentialExecutor | BatchedExecutor:
    """This worker's executor; the network is copied, because it was received as views of shared memory."""
    in_own_memory(runner.module)
    return BatchedExecutor(runner, block) if block > 1 else SequentialExecutor(runner)


def _answer(executor: SequentialExecutor | BatchedExecutor, kind: str, body: Any) -> Any:
    if kind == "predict":
        theta, first, last = body
        return executor.runner.predict_rows(theta, first, last)
    jobs: list[ClientJob] = body
    return list(executor.run(jobs))
