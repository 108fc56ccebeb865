"""Communication between ranks: messages as bytes, sums of vectors, decisions of the first rank."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, final

from safetensors.torch import load, save
from torch import Tensor

from ssfl.engine.client.errors import EngineError
from ssfl.engine.state.serialization import Packer, apart, unpack
from ssfl.errors import UserError

T = TypeVar("T")
LENGTH = struct.Struct("<Q")
"""The format of a number in front of a message."""


class RankError(EngineError):
    """Another rank died, failed, or does not compute the same run."""


class RefusedByFirstRank(UserError):
    """Bad input found by rank 0, which prints the error."""

    reported_by_first_rank = True


class Link(Protocol):
    """The communication between ranks."""

    @property
    def rank(self) -> int:
        """This process's number, from 0; rank 0 writes the run folder."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def gather(self, message: bytes) -> list[bytes]:
        """Every rank's message, by rank; all ranks must call it. Raises RankError if one has ended."""
        ...

    def add_up(self, vector: Tensor) -> Tensor:
        """The sum of all ranks' vectors of one shape, with the same bits on all; may overwrite `vector`."""
        ...


@final
class Alone:
    """The link of a run in one process."""

    rank = 0
    size = 1

    def gather(self, message: bytes) -> list[bytes]:
        """The message itself."""
        return [message]

    def add_up(self, vector: Tensor) -> Tensor:
        """The vector itself."""
        return vector


def to_bytes(value: Any, packer: Packer | None = None) -> bytes:
    """A value of numbers, strings, tensors and dataclasses as bytes, without pickle.

    Tensors that `packer` already contains are sent by name only: the reader must have them too.
    """
    packer = packer or Packer()
    known = set(packer.tensors)
    head = json.dumps(packer.pack(value)).encode()
    new = {name: t for name, t in packer.tensors.items() if name not in known}
    return LENGTH.pack(len(head)) + head + save(apart(new))


def from_bytes(raw: bytes, records: Sequence[type[Any]], known: Mapping[str, Tensor] | None = None) -> Any:
    """The inverse of `to_bytes`; `known` contains the tensors that were sent by name only."""
    (length,) = LENGTH.unpack_from(raw)
    start = LENGTH.size + length
    tensors = {**(known or {}), **load(raw[start:])}
    return unpack(json.loads(raw[LENGTH.size : start]), tensors, records)


def first_decides(link: Link, decide: Callable[[], T], records: Sequence[type[Any]] = ()) -> T:
    """The result of rank 0's `decide`, on every rank.

    If it fails, the other ranks raise RefusedByFirstRank for a UserError, otherwise RankError.
    """
    if link.size == 1:
        return decide()
    if link.rank:
        how, value = from_bytes(link.gather(b"")[0], records)
        if how == "refused":
            raise RefusedByFirstRank(value)
        if how == "failed":
            raise RankError(f"rank 0 stopped: {value}")
        return value  # type: ignore[no-any-return]
    try:
        own = decide()
    except Exception as error:
        refused = isinstance(error, UserError)
        link.gather(to_bytes(("refused" if refused else "failed", str(error))))
        raise
    link.gather(to_bytes(("decided", own)))
    return own
