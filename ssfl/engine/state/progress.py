"""Everything that a resume needs, between two exchanges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssfl.algorithms.base import Clock
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.accounting.scoreboard import Scoreboard
from ssfl.engine.client.memory import ClientMemories


@dataclass(frozen=True)
class Progress:
    """Everything that a resume needs, between two exchanges."""

    state: Any
    clock: Clock
    scoreboard: Scoreboard | None
    ledger: Ledger
    client_memories: ClientMemories = field(default_factory=dict)
    validation: Scoreboard | None = None
    """Results of the clients' own models on their held-out rows; None if there are none."""
