"""A two-sided stack of transforms between an algorithm and the wire.

The sender of a payload applies the transforms in order, the receiver undoes them in reverse order, as postprocessors do
in pfl-research (Granqvist et al. 2024, section 3.2). A transform may keep state at each end; that of a client is in
its `ClientState` and saved with it. Value codecs are transforms (`coding.py`); other examples are clipping with noise,
and masks that cancel in a sum (tests/wire/test_stack.py has both).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import SERVER, DenseValues, MaskBits, MaskedValues, Part, Payload
from ssfl.core.rng import stream
from ssfl.wire.holdings import VALUES, Held, Known, State, held_of, held_state, values_at

Direction = Literal["down", "up"]
PREFIX = "wire/"
"""Prefix of transforms' states in a client's state."""
HELD = f"{PREFIX}held/"
"""Prefix of the values that a client keeps as references."""


@final
class Received:
    """The values of the server's messages that both ends hold, decoded on request. Both ends build the same object.

    inbox: the client's messages of this exchange; held: what it holds of an earlier one, for parts not in the inbox.
    """

    def __init__(
        self, inbox: Sequence[Payload], opened: Callable[[Payload], Payload], held: Held | None = None
    ) -> None:
        self._inbox = [payload for payload in inbox if payload.sender == SERVER]
        self._opened = opened
        self._held = held or {}

    def known(self, name: str) -> Known | None:
        """The last part of this name with values; None if there is none."""
        for payload in reversed(self._inbox):
            sent = payload.parts.get(name)
            if sent is not None and not isinstance(sent, MaskBits):
                return Known(self._opened(payload).parts[name], sent)
        return self._held.get(name)

    @property
    def names(self) -> list[str]:
        """Names of all parts in the inbox."""
        return list(dict.fromkeys(name for payload in self._inbox for name in payload.parts))


NOTHING_RECEIVED = Received((), lambda payload: payload)


@final
@dataclass(frozen=True)
class Hop:
    """The context of one message between the server and a client."""

    direction: Direction
    client: int
    """The client that sends or receives the message; SERVER for a message that is equal for many clients."""
    phase: str
    round: int
    seed: int
    layout: Layout
    received: Received = NOTHING_RECEIVED
    """What both ends hold: for a reply, what the client received before it in this exchange; for a server's message,
    what the client holds of an earlier exchange, if that is tracked."""

    def draws(self, name: str) -> torch.Generator:
        """The random stream of a part. It does not depend on where or when the part is encoded."""
        return stream(self.seed, "wire", self.direction, self.phase, self.round, self.client, name)


class Transform(ABC):
    """One layer of the stack: `send` at the sender, `receive` at the receiver. Both are pure and return a new state."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A name that is unique in the stack; states are stored under it."""

    @property
    def per_client(self) -> bool:
        """Downlink: whether a broadcast differs between clients, or clients keep state to receive it.

        If this is False for all transforms, a broadcast is encoded once.
        """
        return False

    @abstractmethod
    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        """Returns (payload for the next transform towards the wire, new state)."""

    @abstractmethod
    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        """Returns (payload for the next transform towards the algorithm, new state). Raises WireError."""


Stack = Sequence[Transform]


def send(stack: Stack, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
    """Apply all transforms in order. Returns (payload, state); `state` contains the states of all transforms."""
    for transform in stack:
        own = _state_of(transform, hop, state)
        payload, kept = transform.send(payload, hop, own)
        state = _with_state(transform, hop, state, own, kept)
    return payload, state


def receive(stack: Stack, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
    """Undo all transforms in reverse order. Returns (payload, state). Raises WireError."""
    for transform in reversed(stack):
        own = _state_of(transform, hop, state)
        payload, kept = transform.receive(payload, hop, own)
        state = _with_state(transform, hop, state, own, kept)
    return payload, state


def task_state(state: State) -> State:
    """A client's state without the transforms' states, for its task."""
    if not any(name.startswith(PREFIX) for name in state):
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}


def wire_state(state: State) -> dict[str, Tensor]:
    """The transforms' states in a client's state."""
    return {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _prefix(transform: Transform, hop: Hop) -> str:
    return f"{PREFIX}{hop.direction}/{transform.name}/"


def _state_of(transform: Transform, hop: Hop, state: State) -> State:
    prefix = _prefix(transform, hop)
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _with_state(transform: Transform, hop: Hop, state: State, before: State, kept: State) -> State:
    if kept is before:
        return state
    prefix = _prefix(transform, hop)
    others = {n: t for n, t in state.items() if not n.startswith(prefix)}
    return others | {f"{prefix}{n}": t for n, t in kept.items()}


@final
@dataclass(frozen=True)
class OpenedInbox:
    """A client's messages as the algorithm produced them, up to the codecs' error."""

    payloads: Sequence[Payload]
    received: Received
    """The values that the reply may refer to."""
    state: State
    """The client's state after the transforms."""


@final
class WireStack:
    """Both ends of the connection between the server and its clients, for simulation and deployment.

    down, up: the transforms of the server's messages and of the replies, in order from the algorithm to the wire.
    versions: number of messages that the server keeps, to send differences to them; 0: none.

    Clients start from the values that they decoded, which may differ from the server's. `receive_reply` therefore adds
    the coding error of the message to the reply's values, so that the server applies the client's change to its own
    values. Otherwise every round would round the global model, and changes below one step would never accumulate.
    """

    def __init__(
        self, layout: Layout, seed: int, down: Stack = (), up: Stack = (), versions: int = 0
    ) -> None:
        self.layout = layout
        self.seed = seed
        self.down = tuple(down)
        self.up = tuple(up)
        self.versions = versions
        self._opened: dict[tuple[int, bytes], tuple[Payload, Payload]] = {}
        self._originals: dict[bytes, Part] = {}
        self._lost: dict[bytes, Part | None] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": {}, "_originals": {}, "_lost": {}}

    @property
    def is_plain(self) -> bool:
        """Whether there are no transforms."""
        return not (self.down or self.up)

    @property
    def encodes_once(self) -> bool:
        """Whether clients that hold the same values receive the same bytes of a broadcast."""
        return not any(transform.per_client for transform in self.down)

    # ── server side ─────────────────────────────────────────────────────────────────────────────────────────────
    def send_to(
        self, payload: Payload, client: int, phase: str, round_: int, held: Held | None = None
    ) -> Payload:
        """Encode a server's message for clients that hold `held`; client: SERVER if all receive the same bytes.

        The original values are kept until `forget`.
        """
        sent, _ = send(self.down, payload, self._down_hop(client, phase, round_, held), {})
        for name, part in payload.parts.items():
            if sent.parts.get(name) is not part and not isinstance(part, MaskBits):
                self._originals[sent.parts[name].version] = part
        return sent

    def forget(self) -> None:
        """Drop the original values of the last exchange, before the messages of the next one."""
        self._originals.clear()
        self._lost.clear()

    def received_by(
        self, inbox: Sequence[Payload], client: int, phase: str, round_: int, held: Held | None = None
    ) -> Received:
        """What a client that held `held` holds after it received `inbox`."""
        return Received(inbox, lambda payload: self._open(payload, client, phase, round_, held or {}))

    def receive_reply(
        self, payload: Payload, received: Received, client: int, phase: str, round_: int
    ) -> Payload:
        """Decode a client's reply as if the client had received the server's original values.

        Exact up to the uplink's coding error. Raises WireError.
        """
        if self.up:
            payload, _ = receive(self.up, payload, self._up_hop(client, phase, round_, received), {})
        return self._without_loss(payload, received) if self._originals else payload

    # ── client side ─────────────────────────────────────────────────────────────────────────────────────────────
    def open_inbox(
        self, inbox: Sequence[Payload], state: State, client: int, phase: str, round_: int
    ) -> OpenedInbox:
        """Decode a client's messages, given its state. Raises WireError.

        Messages from other clients are decoded like replies, without references.
        """
        held = self.held_by(state)
        received = self.received_by(inbox, client, phase, round_, held)
        if self.is_plain:
            return OpenedInbox(inbox, received, state)
        found: list[Payload] = []
        for payload in inbox:
            if payload.sender != SERVER:
                hop = self._up_hop(payload.sender, phase, round_, NOTHING_RECEIVED)
                opened = receive(self.up, payload, hop, {})[0]
            elif self.encodes_once:
                opened = self._open(payload, client, phase, round_, held)
            else:
                opened, state = receive(
                    self.down, payload, self._down_hop(client, phase, round_, held), state
                )
            found.append(opened)
        return OpenedInbox(found, received, self._holding(received, state))

    def send_reply(
        self, payload: Payload, received: Received, state: State, client: int, phase: str, round_: int
    ) -> tuple[Payload, State]:
        """Encode a reply. Returns (payload, state)."""
        if not self.up:
            return payload, state
        return send(self.up, payload, self._up_hop(client, phase, round_, received), state)

    def held_by(self, state: State) -> Held:
        """The server's values that a client's state holds."""
        if not self.versions:
            return {}
        return held_of({n.removeprefix(HELD): t for n, t in state.items() if n.startswith(HELD)})

    # ── internals ────────────────────────────────────────────────────────────────────────────────────────────────
    def _without_loss(self, payload: Payload, received: Received) -> Payload:
        parts: dict[str, Part] = {}
        for name, part in payload.parts.items():
            parts[name] = part
            known = received.known(name)
            lost = None if known is None else self._lost_of(known)
            if lost is not None and isinstance(part, VALUES):
                change = values_at(part, lost)
                # Values of another type stay as they are, so that the reply is refused.
                if change is not None and change.dtype == part.values.dtype:
                    parts[name] = replace(part, values=part.values + change)
        return replace(payload, parts=parts)

    def _lost_of(self, known: Known) -> Part | None:
        """The coding error: original values minus decoded ones; None if they are equal."""
        version = known.version
        original = self._originals.get(version)
        if isinstance(original, VALUES) and version not in self._lost:
            decoded = values_at(original, known.part)
            if decoded is None or torch.equal(decoded, original.values):
                self._lost[version] = None
            else:
                self._lost[version] = replace(original, values=original.values - decoded)
        return self._lost.get(version)

    def _down_hop(self, client: int, phase: str, round_: int, held: Held | None) -> Hop:
        received = Received((), lambda payload: payload, held) if held else NOTHING_RECEIVED
        return Hop("down", client, phase, round_, self.seed, self.layout, received)

    def _up_hop(self, client: int, phase: str, round_: int, received: Received) -> Hop:
        return Hop("up", client, phase, round_, self.seed, self.layout, received)

    def _holding(self, received: Received, state: State) -> State:
        """The state with the newly received values; the same object if there are none."""
        new = newly_held(received) if self.versions else {}
        if not new:
            return state
        return {**state, **{f"{HELD}{name}": tensor for name, tensor in held_state(new).items()}}

    def _open(self, payload: Payload, client: int, phase: str, round_: int, held: Held) -> Payload:
        """A server's message as the client decodes it; cached, so that a broadcast is decoded once."""
        if not self.down:
            return payload
        key = id(payload), b"".join(known.version for known in held.values())
        cached = self._opened.get(key)
        if cached is not None and cached[0] is payload:
            return cached[1]
        opened, _ = receive(self.down, payload, self._down_hop(client, phase, round_, held), {})
        if len(self._opened) >= CACHE_SIZE:
            self._opened.clear()
        self._opened[key] = (payload, opened)
        return opened


def newly_held(received: Received) -> dict[str, Known]:
    """Name -> the values of an inbox to which later messages may refer."""
    found = {name: received.known(name) for name in received.names}
    return {
        name: known
        for name, known in found.items()
        if known is not None and isinstance(known.part, (DenseValues, MaskedValues))
    }


CACHE_SIZE = 8
"""Number of messages whose decoded form a stack caches."""
