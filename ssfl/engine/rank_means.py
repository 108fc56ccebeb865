"""The mean of a phase's replies over ranks: each sums its own, one reduction adds the sums, no reply crosses.

For phases whose task says that the server reads nothing of the replies but their mean (`ClientTask.averaged_by`).
Every client's reply then carries that mean in its own shape: its mean is the mean again, whatever the method does with
it, and the books count the bytes that each client sent. Equal to one process to rounding, not to the bit.
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
    """Of every part, in the payload's order; UnequalRepliesError for a part that has no mean."""
    return tuple(_outline(name, part) for name, part in payload.parts.items())


def _outline(name: str, part: Part) -> Outline:
    if not isinstance(part, (DenseValues, MaskedValues)):
        raise UnequalRepliesError(f"a {type(part).__name__} has no mean: the task must not say averaged_by")
    support = part.support if isinstance(part, MaskedValues) else None
    dtype = str(part.values.dtype).removeprefix("torch.")
    return Outline(name, part.values.numel(), dtype, support)


@final
@dataclass
class PartialMean:
    """This rank's sum of share * values, part by part; shares are of all ranks' weight."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, payload: Payload, share: float) -> None:
        """One more client's reply."""
        for name, part in payload.parts.items():
            if not isinstance(part, (DenseValues, MaskedValues)):
                raise UnequalRepliesError(f"a {type(part).__name__} has no mean")
            if name in self.sums:
                self.sums[name].add_(part.values, alpha=share)
            else:
                self.sums[name] = part.values * share

    def of(self, outline: Outline) -> Tensor:
        """The sum of a part; zeros on a rank that had no client."""
        if outline.name not in self.sums:
            self.sums[outline.name] = torch.zeros(outline.count, dtype=getattr(torch, outline.dtype))
        return self.sums[outline.name]


def same(found: Iterable[tuple[Outline, ...]]) -> tuple[Outline, ...]:
    """The outlines that all replies share; UnequalRepliesError where two differ."""
    kinds = set(found)
    if len(kinds) > 1:
        raise UnequalRepliesError("replies of one phase differ in their parts: they have no common mean")
    return kinds.pop() if kinds else ()


def payload_of(parts: Sequence[Outline], means: Sequence[Tensor], sender: int) -> Payload:
    """The mean in the shape of one client's reply; all clients' share the memory of `means`."""
    made = {
        p.name: DenseValues(mean) if p.support is None else MaskedValues(mean, p.support)
        for p, mean in zip(parts, means, strict=True)
    }
    return Payload(made, sender)
