"""The messages between the server and its sites, as frozen types; `message_bytes.py` has their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ssfl.algorithms.base import ClientReport

PROTOCOL = 1
"""Version of the protocol; both sides must use the same."""
LACKS = "lacks broadcasts: "
"""Prefix of a site's refusal that lists the digests of the broadcasts that the server must send again."""
JOIN_FIRST = "send a join first"
"""Part of a site's refusal if it has not joined the run."""

Inputs = Literal["scaled", "unchanged", "whole"]
"""Examples of a site as its network reads them: scaled, or as stored (dataset.features=unchanged), floats or whole
numbers."""


class MessageError(ValueError):
    """Bytes that are not a message of this protocol; the text is one line."""


@dataclass(frozen=True)
class Scaling:
    """How examples are normalised and augmented, if the server sets it for all sites."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Join:
    """Server to site: join a run that starts, is resumed, or is in progress."""

    run: str
    """The run's name; the same after a resume."""
    client: int
    """The site's number in this run, from its registered key."""
    config: str
    """The run's configuration as YAML: tasks and network, without paths of data."""
    class_names: tuple[str, ...] = ()
    """The common label order, if the server knows it; empty: the site's own."""
    scaling: Scaling | None = None
    """None: the site uses the statistics of its own data."""


@dataclass(frozen=True)
class Joined:
    """Site to server: what the server must know to plan a run. Nothing else about the data is sent."""

    run: str
    client: int
    examples: int
    test_examples: int
    num_classes: int
    input_shape: tuple[int, ...]
    layout: str
    """The digest of the network's layout, hex."""
    classes: str
    """A digest of the class names in their order, hex; it must be equal at all sites."""
    standing: tuple[str, ...] = ()
    """Digests of this run's broadcasts (masks) that the site holds."""
    protocol: int = PROTOCOL
    inputs: Inputs = "scaled"


@dataclass(frozen=True)
class HeldBroadcast:
    """A broadcast (a mask) that every client must hold, as it was sent."""

    digest: str
    phase: str
    round: int
    blobs: tuple[bytes, ...]


@dataclass(frozen=True)
class Work:
    """Server to site: an instruction."""

    run: str
    client: int
    exchange: int
    """Number of the exchange within the run, from 1; it identifies repeated and stale messages."""
    phase: str
    round: int
    total: int
    inbox: tuple[bytes, ...]
    publish: bool = False
    """Whether other clients receive the reply too; it must then not refer to what this client received."""
    holds: tuple[str, ...] = ()
    """Digests of the broadcasts that the site must hold for this work."""
    missed: tuple[HeldBroadcast, ...] = ()
    """Those of them that the site lacks, as far as the server knows; it processes them before the work."""
    checkpoints: tuple[int, ...] = ()
    """The exchanges after which the server's checkpoints were saved: it may resume from one, so the site keeps its
    states as of them. Servers of earlier versions do not send this."""


@dataclass(frozen=True)
class Done:
    """Site to server: the reply to a Work."""

    run: str
    client: int
    exchange: int
    report: ClientReport
    payload: bytes
    holds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ping:
    """Server to site: asks for a Pong. A site answers one message at a time, so the Pong means that it is free."""

    run: str


@dataclass(frozen=True)
class Pong:
    """Site to server: free. run: the run that it has joined; empty for none."""

    run: str
    wish: int = -1
    """Client number that the site asks for if the server has no roster; -1: any."""


@dataclass(frozen=True)
class Finish:
    """Server to site: the run is over; save the client's own model and delete the run's state."""

    run: str


@dataclass(frozen=True)
class Finished:
    """Site to server: confirms a Finish."""

    run: str


AnyMessage = Join | Joined | Work | Done | Ping | Pong | Finish | Finished


def inputs_name(unchanged: bool, dtype: torch.dtype) -> Inputs:
    """How the network reads examples, as a message names it."""
    if not unchanged:
        return "scaled"
    return "whole" if dtype == torch.int64 else "unchanged"
