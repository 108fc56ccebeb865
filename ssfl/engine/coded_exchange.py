"""An exchange with the server's side of the transforms between algorithm and wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import final

from ssfl.algorithms.base import ClientReply, Instruction, PeerModel, RoundPlan
from ssfl.core.payloads import SERVER, Part, Payload
from ssfl.core.reading import WireError
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.client.errors import DivergedError
from ssfl.engine.client.memory import ClientMemories, ClientMemory
from ssfl.engine.loop import Exchange
from ssfl.wire.holdings import Held, Holdings, Known
from ssfl.wire.stack import NOTHING_RECEIVED, Received, WireStack, newly_held
from ssfl.wire.value_codec import NotFiniteError

Refused = Callable[[int, WireError], None]


def stop(client: int, error: WireError) -> None:
    """Raise the error: in a simulation a reply that cannot be decoded is a bug."""
    raise error


@final
class ServerCoder:
    """The server's side of the transforms, one plan at a time: `begin`, then `read` for every reply, then `end`.

    The clients' side is in `engine/client/visit.py`.
    """

    def __init__(self, wire: WireStack) -> None:
        self.wire = wire
        self.holdings = Holdings(wire.versions)
        self._plan: RoundPlan | None = None
        self._received: dict[int, Received] = {}

    def begin(self, plan: RoundPlan) -> RoundPlan:
        """Encode a plan's messages; a message for many clients is encoded once."""
        self.wire.forget()
        coded = self._coded(plan)
        self._plan = coded
        self._received = {i.client: self._received_by(i, plan) for i in coded.instructions}
        return coded

    def asked(self, client: int) -> dict[str, Part]:
        """Name of a part -> the values that a client was sent in this plan, as it decodes them.

        Empty if decoding needs the client's state.
        """
        if not self.wire.encodes_once:
            return {}
        received = self._received[client]
        known = {name: received.known(name) for name in received.names}
        return {name: one.part for name, one in known.items() if one is not None}

    def read(self, client: int, payload: Payload) -> Payload:
        """Decode a client's reply to this plan. Raises WireError."""
        plan = self._plan
        assert plan is not None, "call begin first"
        known = NOTHING_RECEIVED if plan.publish else self._received[client]
        return self.wire.receive_reply(payload, known, client, plan.phase, plan.clock.round)

    def end(self, replied: Sequence[int]) -> None:
        """After the last reply: clients that replied hold what was sent to them; what the others hold is unknown."""
        if self.wire.versions:
            self.holdings = self._holdings_after(replied)

    def memory(self) -> ClientMemories:
        """The state of this side between plans, under the client number SERVER."""
        return {SERVER: ClientMemory(self.holdings.state())} if self.wire.versions else {}

    def restored(self, memories: ClientMemories) -> ClientMemories:
        """Restore what `memory` returned. Returns the memories of the clients."""
        if SERVER in memories:
            self.holdings = self.holdings.restored(memories[SERVER].load().state)
        return {client: memory for client, memory in memories.items() if client != SERVER}

    def _coded(self, plan: RoundPlan) -> RoundPlan:
        if not self.wire.down:
            return plan
        made: dict[tuple[int, int, int], Payload] = {}

        def coded(message: Payload | PeerModel, client: int) -> Payload | PeerModel:
            if isinstance(message, PeerModel) or message.sender != SERVER:
                return message
            held = self.holdings.of(client)
            to = SERVER if self.wire.encodes_once else client
            key = id(message), to, id(held) if held else 0
            if key not in made:
                made[key] = self._sent(message, to, plan, held)
            return made[key]

        instructions = tuple(
            replace(i, inbox=tuple(coded(message, i.client) for message in i.inbox))
            for i in plan.instructions
        )
        return replace(plan, instructions=instructions)

    def _sent(self, message: Payload, to: int, plan: RoundPlan, held: Held) -> Payload:
        """The encoded message. Raises DivergedError if its values cannot be coded."""
        try:
            return self.wire.send_to(message, to, plan.phase, plan.clock.round, held)
        except NotFiniteError as error:
            place = f"phase {plan.phase}, round {plan.clock.round}"
            raise DivergedError(None, f"{place}: the server's message contains {error}") from error

    def _received_by(self, instruction: Instruction, plan: RoundPlan) -> Received:
        inbox = [message for message in instruction.inbox if isinstance(message, Payload)]
        client = instruction.client
        return self.wire.received_by(inbox, client, plan.phase, plan.clock.round, self.holdings.of(client))

    def _holdings_after(self, replied: Sequence[int]) -> Holdings:
        """The new holdings; clients that received the same message share one entry."""
        new = {client: newly_held(one) for client, one in self._received.items()}
        shared: dict[tuple[int, ...], dict[str, Known]] = {}
        for client, held in new.items():
            key = tuple(id(known.part) for known in held.values())
            new[client] = shared.setdefault(key, held)
        asked = [client for client, held in new.items() if held]
        return self.holdings.after(asked, {client: new[client] for client in replied if new[client]})


@final
class CodedExchange:
    """Encodes a plan's messages, sends them through `inner`, decodes the replies.

    refused: called with the client and the error if a reply cannot be decoded; if it returns, the reply counts as
    missing.
    """

    def __init__(self, inner: Exchange, wire: WireStack, refused: Refused = stop) -> None:
        self.inner = inner
        self.coder = ServerCoder(wire)
        self.refused = refused

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        """The decoded replies of `inner`."""
        replied: list[int] = []
        for reply in self.inner(self.coder.begin(plan), meter):
            replied.append(reply.client)
            if reply.is_mean:  # already decoded, before the mean was computed
                yield reply
                continue
            try:
                payload = self.coder.read(reply.client, reply.payload)
            except WireError as error:
                self.refused(reply.client, error)
                continue
            yield replace(reply, payload=payload)
        self.coder.end(replied)

    def client_memories(self) -> ClientMemories:
        """The memories of `inner`, and the state of the server's side."""
        return {**self.coder.memory(), **self.inner.client_memories()}

    def restore(self, memories: ClientMemories) -> None:
        """Restore memories after a resume."""
        self.inner.restore(self.coder.restored(memories))
