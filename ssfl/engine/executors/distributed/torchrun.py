"""Ranks that torchrun started: the link over torch.distributed.

Messages are bytes in host memory, so the backend is gloo on every device; gloo detects at once when another process
has ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from ssfl.engine.executors.distributed.link import Alone, Link, RankError

POLL_SECONDS = 0.001
"""Polling interval; a wait inside gloo would ignore Ctrl-C."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets."""


@final
class TorchLink:
    """Every rank broadcasts its message to all others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's message, by rank."""
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        self._wait(dist.all_gather(lengths, torch.tensor([len(message)]), async_op=True))
        return [self._from(rank, int(length), message) for rank, length in enumerate(lengths)]

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum over all ranks, by one all-reduce in place."""
        self._wait(dist.all_reduce(vector, async_op=True))
        return vector

    def _from(self, rank: int, length: int, own: bytes) -> bytes:
        if not length:
            return b""
        if rank == self.rank:
            self._wait(dist.broadcast(_writable(own), rank, async_op=True))
            return own
        buffer = torch.empty(length, dtype=torch.uint8)
        self._wait(dist.broadcast(buffer, rank, async_op=True))
        return buffer.numpy().tobytes()

    def _wait(self, work: dist.Work | None) -> None:
        assert work is not None
        try:
            while not work.is_completed():
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            who = f"rank {1 - self.rank}" if self.size == 2 else f"another of the {self.size} ranks"
            raise RankError(f"{who} died or did not answer in time; the last checkpoint is kept") from error


def _writable(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)


def local_ranks() -> int:
    """Number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started_by_torchrun() else 1


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined(timeout_seconds: float) -> Iterator[Link]:
    """The link to the other ranks; `Alone` without torchrun.

    timeout_seconds: how long a rank waits for the slowest. Raises RankError after that, or if a rank is unreachable.
    """
    if not started_by_torchrun():
        yield Alone()
        return
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankError(f"rank {os.environ['RANK']} cannot reach the others at {where} ({error})") from error
    try:
        yield TorchLink(dist.get_rank(), dist.get_world_size())
    finally:
        with contextlib.suppress(Exception):  # destroying the group fails if a rank has died
            dist.destroy_process_group()
