"""Replies that their clients remember too: named, not held again.

A coordinator that keeps what clients sent (DisPFL's notice board: every client's last model) would hold in memory what
the client store may have put on disk. What it keeps instead is the client's number and the names of the tensors; a look
at the parts finds them wherever the store has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from ssfl.algorithms.base import ClientState, Instruction
from ssfl.core.payloads import Part, Payload, SparseValues
from ssfl.engine.client_store import ClientStore, Entry


@final
@dataclass(frozen=True, eq=False)
class Remembered(Mapping[str, Part]):
    """Parts of one client's payload, each a sparse vector whose values and bits the client remembers.

    In a checkpoint it is the names alone; they mean the client's state of that same checkpoint.
    """

    client: int
    names: Mapping[str, tuple[str, str]]
    """Part -> what the client calls its values and its bits."""

    def at(self, entry: Entry) -> Remembered:
        """The same, knowing where the client's memory is."""
        object.__setattr__(self, "_entry", entry)
        return self

    @property
    def bound(self) -> bool:
        """Whether it can be looked at: one that a checkpoint held cannot, until the exchange delivers it."""
        return hasattr(self, "_entry")

    def __getitem__(self, name: str) -> Part:
        values, bits = self.names[name]
        state: ClientState = getattr(self, "_entry").state  # noqa: B009 (no field: a checkpoint does not hold it)
        return SparseValues(state[values], state[bits])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def without_tensors(payload: Payload, state: ClientState, entry: Entry) -> Payload:
    """The payload by name, if all its parts are sparse vectors that lie in `state` to the bit; else the payload.

    entry: where the store keeps that state.
    """
    names: dict[str, tuple[str, str]] = {}
    for name, part in payload.parts.items():
        if not isinstance(part, SparseValues):
            return payload
        values, bits = _name_of(part.values, state), _name_of(part.bits, state)
        if values is None or bits is None:
            return payload
        names[name] = values, bits
    return replace(payload, parts=Remembered(payload.sender, names).at(entry)) if names else payload


def bind(instruction: Instruction, store: ClientStore) -> None:
    """Let an inbox that came from a checkpoint be looked at: the clients' memories are those of that checkpoint."""
    for payload in instruction.inbox:
        parts = payload.parts
        if isinstance(parts, Remembered) and not parts.bound:
            parts.at(store.entry(parts.client))


def _name_of(tensor: Tensor, state: ClientState) -> str | None:
    for name, kept in state.items():
        if kept is tensor:
            return name
    for name, kept in state.items():  # from a worker process both come as copies
        if kept.dtype == tensor.dtype and kept.shape == tensor.shape and _bytes(kept).equal(_bytes(tensor)):
            return name
    return None


def _bytes(tensor: Tensor) -> Tensor:
    """A vector's memory: -0.0 is not 0.0, and NaN is itself."""
    return tensor.contiguous().view(torch.uint8)
