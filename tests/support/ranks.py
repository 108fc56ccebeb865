"""Ranks as threads of one process, and the links between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ssfl.engine.executors.distributed.link import Link

T = TypeVar("T")


@dataclass
class SharedMessages:
    """The shared state of ranks that are threads."""

    size: int
    messages: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)


MAKING = threading.Lock()


@dataclass
class ThreadLink:
    """A link between threads of this process."""

    rank: int
    shared: SharedMessages
    sent: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.shared.size

    def add_up(self, vector: Tensor) -> Tensor:
        parts = self.gather(vector.numpy().tobytes())
        return torch.stack([torch.frombuffer(bytearray(p), dtype=vector.dtype) for p in parts]).sum(0)

    def gather(self, message: bytes) -> list[bytes]:
        self.sent.append(len(message))
        self.shared.messages[self.rank] = message
        self.shared.barrier.wait()
        messages = [self.shared.messages[r] for r in range(self.size)]
        self.shared.barrier.wait()
        return messages


def on_ranks(size: int, work: Callable[[Link], T]) -> list[T | Exception]:
    """The result of every rank's thread, or its error."""
    shared = SharedMessages(size)
    out: dict[int, T | Exception] = {}
    threads_each = torch.get_num_threads()

    def run(rank: int) -> None:
        torch.set_num_threads(threads_each)  # the setting is per thread, and bits may depend on it
        try:
            out[rank] = work(ThreadLink(rank, shared))
        except Exception as error:
            out[rank] = error

    threads = [threading.Thread(target=run, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [out[r] for r in range(size)]
