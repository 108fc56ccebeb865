"""What a client keeps between rounds, in memory or as a handle that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from ssfl.algorithms.base import ClientState
from ssfl.core.payloads import Payload


@final
@dataclass(frozen=True)
class ClientMemory:
    """A client's state, and its last payload in a plan with `publish`; both may share tensors."""

    state: ClientState = field(default_factory=dict)
    published: Payload | None = None

    def load(self) -> ClientMemory:
        """Itself."""
        return self


class MemoryHandle(Protocol):
    """A client's memory: a `ClientMemory`, or a file that contains one."""

    def load(self) -> ClientMemory:
        """The memory; its tensors may be views of a memory-mapped file."""
        ...


ClientMemories = Mapping[int, MemoryHandle]
"""Client number -> memory."""
