"""Who hears whom in a round without a server."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TOPOLOGIES = ("random", "ring", "full")


def neighbours(
    topology: str, client: int, clients: Sequence[int], count: int, generator: torch.Generator
) -> list[int]:
    """The clients whose models `client` takes, ascending and without itself; `clients` is everybody, ascending.

    "random": `count` others (fewer where there are fewer), drawn without replacement; "ring": the one before and
    the one after; "full": all others. Raises ValueError for another topology.
    """
    others = [c for c in clients if c != client]
    if topology == "full":
        return others
    if topology == "ring":
        at = clients.index(client)
        return sorted({clients[at - 1], clients[(at + 1) % len(clients)]} - {client})
    if topology == "random":
        order = torch.randperm(len(others), generator=generator)[:count]
        return sorted(others[i] for i in order.tolist())
    raise ValueError(f"topology={topology!r}: allowed are {', '.join(TOPOLOGIES)}")
