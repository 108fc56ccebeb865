"""What the server knows of one site, of a message to it that is not answered yet, and of the result of its work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssfl.deploy.protocol import messages

RETRY_SECONDS = 2.0
"""Seconds before a failed ping or join is repeated; doubles up to a minute."""
MAX_REFUSED_ANSWERS = 3
"""Refused answers after which a site is excluded until it is restarted."""

LATE = "no answer before the deadline"

Purpose = Literal["ping", "join", "work", "finish"]


@dataclass
class Site:
    """One node."""

    node: int
    key: str
    name: str
    session: str = ""
    client: int | None = None
    """None until the roster or the site's request determines it."""
    joined: messages.Joined | None = None
    holds: set[str] = field(default_factory=set)
    free: bool = False
    """Has answered every message, as far as the server knows."""
    present: bool = True
    """The transport counts it as online."""
    lost_at: float = 0.0
    """When it was last found to be disconnected."""
    refusal: str = ""
    """Why it has not joined: the reason that the site gives, or why its answer was refused."""
    refused_answers: int = 0
    next_try: float = 0.0
    pause: float = RETRY_SECONDS

    @property
    def excluded(self) -> bool:
        """Too many of its answers were refused since its process started."""
        return self.refused_answers >= MAX_REFUSED_ANSWERS

    @property
    def ready(self) -> bool:
        """Work may be sent to it now."""
        return self.free and self.present and self.joined is not None and not self.excluded

    @property
    def expected(self) -> bool:
        """It is connected and may join or answer without an operator's action."""
        return self.present and not self.excluded and (self.joined is not None or not self.refusal)


@dataclass(frozen=True)
class PendingMessage:
    """A message that has not been answered yet."""

    site: Site
    purpose: Purpose
    expires: float


@dataclass(frozen=True)
class WorkOutcome:
    """The result of a Work message: the reply, or the reason for its absence."""

    client: int
    done: messages.Done | None
    reason: str = ""
    gone: bool = False
    """The site is not connected: no answer is expected in this exchange unless it reconnects."""
