"""Records which values of the server's messages each client holds, so that later messages may be differences to them.

A client keeps the last values that it received, and the server keeps them for every client that has replied since. A
client that did not reply may hold the old or the new values, so the server treats it as holding none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ssfl.core.payloads import (
    DIGEST_BYTES,
    DenseValues,
    MaskedValues,
    Part,
    SparseValues,
    dense_values,
)
from ssfl.core.reading import octets

State = Mapping[str, Tensor]
"""The state of one end between messages: tensors by name, so that a checkpoint can contain it."""


@final
@dataclass(frozen=True)
class Known:
    """A part that both ends hold, and its version."""

    part: Part
    """As decoded by the client."""
    sent: Part | None
    """As it was sent; its bytes determine the version. None: `named` is the version."""
    named: bytes = b""

    @property
    def version(self) -> bytes:
        """The version of the values: 8 bytes."""
        return self.named if self.sent is None else self.sent.version


VALUES = (DenseValues, MaskedValues, SparseValues)
"""Plain parts that hold values."""


def values_at(part: Part, known: Part) -> Tensor | None:
    """The values [n] that `known` holds at the coordinates of `part`; None if it does not match.

    Values on a mask match values on the same mask; sparse values are taken from a dense or sparse vector by support.
    """
    if isinstance(part, MaskedValues):
        if not isinstance(known, MaskedValues) or known.support != part.support:
            return None
        return known.values if known.values.shape == part.values.shape else None
    if not isinstance(known, (DenseValues, SparseValues)):
        return None
    whole = dense_values(known)
    if isinstance(part, DenseValues):
        return whole if whole.shape == part.values.shape else None
    if not isinstance(part, SparseValues):
        return None
    return whole[part.bits] if whole.shape == part.bits.shape else None


Held = Mapping[str, Known]
"""Name of a part -> its held values."""


def held_state(held: Held) -> dict[str, Tensor]:
    """Held values as tensors. Sparse values are omitted, because their support changes with every message."""
    found: dict[str, Tensor] = {}
    for name, known in held.items():
        part = known.part
        if isinstance(part, (DenseValues, MaskedValues)):
            support = part.support if isinstance(part, MaskedValues) else b""
            found |= {f"values/{name}": part.values, f"name/{name}": octets(known.version + support)}
    return found


def held_of(state: State) -> dict[str, Known]:
    """The inverse of `held_state`."""
    found: dict[str, Known] = {}
    for key, names in state.items():
        kind, _, name = key.partition("/")
        if kind == "name":
            raw, values = bytes(names.tolist()), state[f"values/{name}"]
            version, support = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
            part = MaskedValues(values, support) if support else DenseValues(values)
            found[name] = Known(part, None, version)
    return found


@final
@dataclass(frozen=True)
class Holdings:
    """The server's record of at most `limit` different messages, and which client holds which."""

    limit: int
    messages: tuple[Held, ...] = ()
    """Oldest first."""
    by_client: Mapping[int, int] = field(default_factory=dict)
    """Client -> position in `messages`."""

    def of(self, client: int) -> Held:
        """What a client holds; empty if that is not known."""
        at = self.by_client.get(client)
        return {} if at is None else self.messages[at]

    def after(self, asked: Iterable[int], replied: Mapping[int, Held]) -> Holdings:
        """After an exchange: clients that replied hold what they were sent; what others in `asked` hold is unknown."""
        known = {c: self.messages[at] for c, at in self.by_client.items()}
        for client in asked:
            known.pop(client, None)
        known |= {client: held for client, held in replied.items() if held}
        order: dict[int, Held] = {}
        for held in (*self.messages, *replied.values()):
            order.pop(id(held), None)
            order[id(held)] = held
        used = {id(held) for held in known.values()}
        kept = [key for key in order if key in used][-self.limit :] if self.limit else []
        position = {key: at for at, key in enumerate(kept)}
        by_client = {c: position[id(held)] for c, held in sorted(known.items()) if id(held) in position}
        return Holdings(self.limit, tuple(order[key] for key in kept), by_client)

    def state(self) -> dict[str, Tensor]:
        """The record as tensors, for a checkpoint."""
        found: dict[str, Tensor] = {}
        for at, held in enumerate(self.messages):
            found |= {f"{at}/{key}": tensor for key, tensor in held_state(held).items()}
        rows = [[client, at] for client, at in self.by_client.items()]
        return found | {"clients": torch.tensor(rows, dtype=torch.int64).view(-1, 2)}

    def restored(self, state: State) -> Holdings:
        """The record from what `state` returned."""
        rows: list[list[int]] = state["clients"].tolist()
        count = 1 + max((at for _, at in rows), default=-1)
        messages = tuple(
            held_of({k.partition("/")[2]: t for k, t in state.items() if k.startswith(f"{at}/")})
            for at in range(count)
        )
        return Holdings(self.limit, messages, {row[0]: row[1] for row in rows})
