"""The interface between the deployment and the transport that carries its messages.

Another transport (NVFlare, for example) must provide these two classes: three functions on the server, four at a site.
A message is a small head, which differs from site to site, and a body of payload bytes, which is the same for all
sites in a broadcast: a transport that stores equal bytes once uploads a broadcast once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ssfl.deploy.log import one_line

FailureKind = Literal["offline", "expired", "failed", "refused"]
"""offline: the site is not connected. expired: the deadline passed. failed: the site reports an error.
refused: the answer exceeds a limit or is not a message of this protocol."""


@dataclass(frozen=True)
class Message:
    """A message in either direction."""

    head: bytes
    """JSON, UTF-8, at most `MAX_HEAD_BYTES`."""
    body: bytes = b""
    """Payloads, as `messages.py` lays them out."""


MAX_HEAD_BYTES = 1_000_000
INLINE_BODY_BYTES = 1_000_000
"""Bodies up to this size are sent inside one record (3 objects instead of 7: measured 0.3 s less a round); larger
ones as one chunked array, which is not compressed and is copied less often."""


@dataclass(frozen=True)
class SiteInfo:
    """A site as the transport knows it."""

    node: int
    """The transport's id of it; changes when the site returns under another key."""
    key: str
    """SHA-256 of its public key (hex), authenticated by its signature."""
    name: str
    """Registered name; empty for a key that registered itself."""
    session: str = ""
    """Changes when the site reconnects; messages to its previous process are then lost."""


@dataclass(frozen=True)
class Answer:
    """A site's answer to the message with this ticket."""

    ticket: str
    message: Message


@dataclass(frozen=True)
class Failure:
    """The message with this ticket will not be answered."""

    ticket: str
    kind: FailureKind
    reason: str


class ServerPort(Protocol):
    """The server's end of the transport."""

    def sites(self) -> tuple[SiteInfo, ...]:
        """The sites that the transport counts as connected; one that has died is included until it is detected."""
        ...

    def send(
        self, outgoing: Sequence[tuple[int, Message]], deadline_seconds: float
    ) -> tuple[str | None, ...]:
        """Send messages to nodes. Returns a ticket for each; None where the node is not known.

        The transport drops a message, or the answer to it, that has not arrived after `deadline_seconds`.
        """
        ...

    def receive(self, tickets: Sequence[str], max_body_bytes: int) -> tuple[Answer | Failure, ...]:
        """The new answers to these tickets; each is returned once. At most `max_body_bytes` of a body are read.

        Waits a few seconds at most, and for no particular site. Every ticket ends with an answer or a failure soon
        after its deadline; an answer that has arrived by then is returned however many others are before it.
        """
        ...


@dataclass(frozen=True)
class Delivery:
    """A message that has arrived at a site, and the address for its answer."""

    address: object
    """Private to the transport."""
    run: str
    """The transport's name of the run that sent it."""
    message: Message
    seconds: float
    """How long after its arrival an answer is accepted; later ones are dropped."""


class SitePort(Protocol):
    """A site's end of the transport. Every method raises `LinkError` if the server is unreachable or refuses it."""

    def connect(self) -> None:
        """Connect the site; does nothing if it is connected."""
        ...

    def receive(self, max_body_bytes: int) -> Delivery | None:
        """The next message, or None if there is none."""
        ...

    def answer(self, delivery: Delivery, message: Message | str) -> None:
        """Send the answer; a string is the reason why there is none."""
        ...

    def close(self) -> None:
        """Disconnect; may be called again."""
        ...


class LinkError(Exception):
    """The connection does not work.

    again: whether a later attempt may succeed without an operator. too_late: the message is no longer awaited.
    """

    def __init__(self, message: str, again: bool = True, too_late: bool = False) -> None:
        super().__init__(one_line(message))
        self.again = again
        self.too_late = too_late
