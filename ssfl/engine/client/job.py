"""The input and output of an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from ssfl.algorithms.base import ClientReply, ClientState, Clock, PeerModel
from ssfl.core.payloads import Payload
from ssfl.engine.client.memory import ClientMemory, MemoryHandle


@final
@dataclass(frozen=True)
class ClientJob:
    """One client's part of an exchange: the phase, its messages, its memory."""

    phase: str
    client: int
    inbox: tuple[Payload | PeerModel, ...]
    clock: Clock
    memory: MemoryHandle = field(default_factory=ClientMemory)
    peers: Mapping[int, MemoryHandle] = field(default_factory=dict)
    """Memories of the clients to which `inbox` refers, if they have published."""
    publish: bool = False
    """Whether other clients receive the reply too; it must then not refer to what this client received."""
    initial_model: Callable[[int], Payload] | None = None
    """The initial models for references (`RoundPlan.initial_model`)."""

    def received(self) -> tuple[Payload, ...]:
        """The inbox with every reference resolved; models are loaded or made only here."""
        return tuple(self._resolved(message) for message in self.inbox)

    def _resolved(self, message: Payload | PeerModel) -> Payload:
        if isinstance(message, Payload):
            return message
        return replace(published_by(message.client, self.peers, self.initial_model), sender=message.sender)


def published_by(
    client: int, peers: Mapping[int, MemoryHandle], initial_model: Callable[[int], Payload] | None
) -> Payload:
    """The last published payload of `client`, or its initial model. Raises LookupError if there is neither."""
    published = peers[client].load().published if client in peers else None
    if published is None:
        if initial_model is None:
            raise LookupError(f"client {client} has published nothing, and the plan names no initial model")
        published = initial_model(client)
    return published


@final
@dataclass(frozen=True)
class Outcome:
    """A reply, and the new client state; None: the state is unchanged."""

    reply: ClientReply
    state: ClientState | None
