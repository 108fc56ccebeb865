"""The mean of a phase's replies over ranks: each rank sums its own replies, and one reduction adds the sums.

For phases whose task declares that the server uses only the mean of the replies (`ClientTask.averaged_by`). Every
client's reply then contains the mean in its own shape, so that the method aggregates as usual, and the ledger counts
the bytes that each client sent. Equal to one process to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from ssfl.core.payloads import DenseValues, MaskedValues, Part, Payload


class UnequalRepliesError(RuntimeError):
    """Replies of one phase that cannot be averaged coordinate by coordinate."""


@dataclass(frozen=True)
class Outline:
    """A part of a reply without its values. support: the digest of masked values; None: dense."""

    name: str
    count: int
    dtype: str
    support: bytes | None


def outlines(payload: Payload) -> tuple[Outline, ...]:
    """The outlines of a payload's parts, in order. Raises UnequalRepliesError for a part without a mean."""
    return tuple(_outline(name, part) for name, part in payload.parts.items())


def _outline(name: str, part: Part) -> Outline:
    if not isinstance(part, (DenseValues, MaskedValues)):
        raise UnequalRepliesError(f"a {type(part).__name__} has no mean: the task must not set averaged_by")
    support = part.support if isinstance(part, MaskedValues) else None
    dtype = str(part.values.dtype).removeprefix("torch.")
    return Outline(name, part.values.numel(), dtype, support)


@final
@dataclass
class PartialMean:
    """This rank's sum of share * values for each part; shares are relative to all ranks' weight."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, payload: Payload, share: float) -> None:
        """Add a client's reply."""
        for name, part in payload.parts.items():
            if not isinstance(part, (DenseValues, MaskedValues)):
                raise UnequalRepliesError(f"a {type(part).__name__} has no mean")
            if name in self.sums:
                self.sums[name].add_(part.values, alpha=share)
            else:
                self.sums[name] = part.values * share

    def of(self, outline: Outline) -> Tensor:
        """The sum of a part; zeros on a rank without clients."""
        if outline.name not in self.sums:
            self.sums[outline.name] = torch.zeros(outline.count, dtype=getattr(torch, outline.dtype))
        return self.sums[outline.name]


def same(found: Iterable[tuple[Outline, ...]]) -> tuple[Outline, ...]:
    """The outlines that all replies have. Raises UnequalRepliesError if they differ."""
    kinds = set(found)
    if len(kinds) > 1:
        raise UnequalRepliesError("replies of one phase differ in their parts: they have no common mean")
    return kinds.pop() if kinds else ()


def payload_of(parts: Sequence[Outline], means: Sequence[Tensor], sender: int) -> Payload:
    """The mean as the payload of one client; all payloads share the memory of `means`."""
    made = {
        p.name: DenseValues(mean) if p.support is None else MaskedValues(mean, p.support)
        for p, mean in zip(parts, means, strict=True)
    }
    return Payload(made, sender)
