"""Which clients exchange models in a round without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ssfl.core.words import check_word

Topology = Literal["random", "ring", "full"]


def neighbours(
    topology: Topology, client: int, clients: Sequence[int], count: int, generator: torch.Generator
) -> list[int]:
    """The neighbours of `client`, ascending and without itself; `clients` are all clients, ascending.

    "random": `count` others (fewer if there are fewer), drawn without replacement; "ring": the one before and
    the one after; "full": all others. Raises ValueError for another topology.
    """
    check_word("topology", topology, Topology)
    others = [c for c in clients if c != client]
    if topology == "full":
        return others
    if topology == "ring":
        at = clients.index(client)
        return sorted({clients[at - 1], clients[(at + 1) % len(clients)]} - {client})
    order = torch.randperm(len(others), generator=generator)[:count]
    return sorted(others[i] for i in order.tolist())
