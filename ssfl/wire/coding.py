"""The transform that codes parts: values with the codec of their direction, scores and masks with separate codecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count, top_k_mask
from ssfl.core.payloads import (
    FACTORS,
    SCORES,
    DenseValues,
    MaskBits,
    MaskedValues,
    Part,
    Payload,
    SparseValues,
    dense_values,
    kept_counts,
)
from ssfl.core.reading import WireError, octets
from ssfl.wire.feedback import Values, errors_at, with_errors
from ssfl.wire.half import Half
from ssfl.wire.holdings import Known, State, values_at
from ssfl.wire.log import Log
from ssfl.wire.mask_codec import PACKED, SORTED, encode_packed, encode_sorted, segments_of
from ssfl.wire.parts import NO_VERSION, CodedMask, CodedSparse, CodedValues
from ssfl.wire.stack import Hop, Transform
from ssfl.wire.value_codec import ValueCodec, Vector

MaskCoding = Literal["bitmap", "coded"]


@final
@dataclass(frozen=True)
class Votes:
    """Scores as one bit each: whether a coordinate is among the client's top-k."""

    density: float
    """Share of the coordinates that a client votes for, (0, 1]."""


@final
@dataclass(frozen=True)
class Coding(Transform):
    """Codes the parts of a payload; parts without a codec are not changed.

    If both ends hold an earlier version of the values, the difference to it is coded, otherwise the values themselves.
    """

    values: ValueCodec | None = None
    """Codec of values without a reference."""
    delta: ValueCodec | None = None
    """Codec of differences to values that both ends hold (`Hop.received`)."""
    scores: ValueCodec | Votes | None = None
    masks: MaskCoding = "bitmap"
    """"coded": the smallest of packed bits, packed bits with zstd, and the sorted form."""
    feedback: bool = False
    """Error feedback: add to each difference the coding error of earlier ones (Seide et al. 2014; Karimireddy et al.
    2019, algorithm 1)."""
    smaller: bool = False
    """Send values without a reference if they take fewer bytes than the difference."""

    @property
    def name(self) -> str:
        return "coding"

    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        """The payload with coded parts, and the state with the error feedback."""
        parts: dict[str, Part] = {}
        for name, part in payload.parts.items():
            if isinstance(part, MaskBits):
                parts[name] = self._mask(part, hop.layout)
            elif name == SCORES and isinstance(part, DenseValues):
                parts[name] = self._scores(part, hop)
            elif name != FACTORS and isinstance(part, (DenseValues, MaskedValues, SparseValues)):
                parts[name], state = self._values(name, part, hop, state)
            else:
                parts[name] = part
        return replace(payload, parts=parts), state

    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        """The payload with decoded parts. Raises WireError."""
        parts = {name: _decoded(name, part, hop) for name, part in payload.parts.items()}
        return replace(payload, parts=parts), state

    def _mask(self, part: MaskBits, layout: Layout) -> MaskBits | CodedMask:
        return part if self.masks == "bitmap" else smallest_mask(part.bits, layout)

    def _scores(self, part: DenseValues, hop: Hop) -> Part:
        if self.scores is None:
            return part
        if isinstance(self.scores, Votes):
            keep = kept_count(part.values.numel(), self.scores.density)
            return self._mask(MaskBits(top_k_mask(part.values, keep)), hop.layout)
        # Log codes magnitudes only.
        signed = isinstance(self.scores, Log) and bool((part.values < 0).any())
        codec = Half() if signed else self.scores
        return coded(part, codec, None, hop.layout, hop.draws(SCORES), self.masks)

    def _values(self, name: str, part: Values, hop: Hop, state: State) -> tuple[Part, State]:
        known = hop.received.known(name) if self.delta is not None else None
        reference = None if known is None else values_at(part, known.part)
        if known is None or reference is None or self.delta is None:
            if self.values is None:
                return part, state
            return coded(part, self.values, None, hop.layout, hop.draws(name), self.masks), state
        held = Reference(known.version, reference)
        if self.feedback:
            return self._with_feedback(name, part, self.delta, held, hop, state)
        difference = coded(part, self.delta, held, hop.layout, hop.draws(name), self.masks)
        if not self.smaller or self.values is None:
            return difference, state
        whole = coded(part, self.values, None, hop.layout, hop.draws(name), self.masks)
        return min(difference, whole, key=lambda form: form.nbytes), state

    def _with_feedback(
        self, name: str, part: Values, codec: ValueCodec, held: Reference, hop: Hop, state: State
    ) -> tuple[Part, State]:
        lost = errors_at(name, part, state)
        wanted = part.values if lost is None else part.values + lost
        part = replace(part, values=wanted)
        sent = coded(part, codec, held, hop.layout, hop.draws(name), self.masks)
        arrived = _decode_values(sent, held.values).values
        return sent, with_errors(name, part, wanted - arrived, state)


@final
@dataclass(frozen=True)
class Reference:
    """Values [n] that both ends hold, and their version."""

    version: bytes
    values: Tensor


def smallest_mask(bits: Tensor, layout: Layout) -> MaskBits | CodedMask:
    """The smallest coded form of a mask [P] or [N]."""
    forms: list[MaskBits | CodedMask] = [MaskBits(bits)]
    count = bits.numel()
    forms.append(CodedMask(SORTED, count, octets(encode_sorted(bits, segments_of(layout, count)))))
    forms.append(CodedMask(PACKED, count, octets(encode_packed(bits))))
    return min(forms, key=lambda part: part.nbytes)


def coded(
    part: Values,
    codec: ValueCodec,
    held: Reference | None,
    layout: Layout,
    draws: torch.Generator,
    masks: MaskCoding = "coded",
) -> CodedValues | CodedSparse:
    """Code a part. Running statistics at its end are not coded. Raises NotFiniteError."""
    values, counts, tail = part.values, *_tensors(part, layout)
    head = len(values) - tail
    start = None if held is None else held.values[:head]
    data = octets(codec.encode(Vector(values[:head], start, counts), draws))
    version = NO_VERSION if held is None else held.version
    rest = values[head:].clone()
    if isinstance(part, SparseValues):
        mask = smallest_mask(part.bits, layout) if masks == "coded" else MaskBits(part.bits)
        return CodedSparse(codec.code, len(part.bits), version, mask, rest, data, len(values))
    support = part.support if isinstance(part, MaskedValues) else NO_VERSION
    return CodedValues(codec.code, len(values), version, support, rest, data)


def _tensors(part: Values, layout: Layout) -> tuple[Sequence[int], int]:
    """Returns (values in each tensor to code, number of statistics at the end)."""
    count = len(part.values)
    if isinstance(part, DenseValues):
        if count == layout.size:
            counts: Sequence[int] = layout.sizes
        elif count == layout.prunable_size:
            return [stop - start for _, start, stop in layout.prunable_segments], 0
        else:
            return [count], 0
    elif isinstance(part, SparseValues):
        if len(part.bits) != layout.size:
            return [count], 0
        counts = kept_counts(layout, part.bits)
    elif not part.counts:
        return [count], 0
    else:
        counts = part.counts
    trained = [n for n, is_trained in zip(counts, layout.trained, strict=True) if is_trained]
    return trained, count - sum(trained)


def _decoded(name: str, part: Part, hop: Hop) -> Part:
    """Decode a part, the inverse of `Coding.send`. Raises WireError."""
    if isinstance(part, CodedMask):
        if part.count not in (hop.layout.prunable_size, hop.layout.size):
            raise WireError(f"a mask of {part.count} coordinates; the model has {hop.layout.size}")
        part = part.decoded()
    if name == SCORES and isinstance(part, MaskBits):
        return DenseValues(part.bits.float())
    if not isinstance(part, (CodedValues, CodedSparse)):
        return part
    if part.count > hop.layout.size:
        raise WireError(f"{part.count} values; the model has {hop.layout.size} coordinates")
    if part.reference == NO_VERSION:
        return _decode_values(part, None)
    known = hop.received.known(name)
    if known is None or known.version != part.reference:
        ours = "nothing" if known is None else f"version {known.version.hex()}"
        raise WireError(f"{name}: a difference to version {part.reference.hex()}, but this side holds {ours}")
    return _decode_difference(part, known)


def _decode_difference(part: CodedValues | CodedSparse, known: Known) -> Part:
    if isinstance(part, CodedSparse):
        bits = part.support()
        if not isinstance(known.part, (DenseValues, SparseValues)):
            raise WireError("coordinates refer to values on a mask")
        whole = dense_values(known.part)
        if whole.shape != bits.shape:
            raise WireError(f"{len(bits)} coordinates refer to {len(whole)}")
        return part.decoded(bits, whole[bits])
    held = known.part
    if not isinstance(held, (DenseValues, MaskedValues)):
        held = DenseValues(dense_values(held))
    support = held.support if isinstance(held, MaskedValues) else NO_VERSION
    if len(held.values) != part.count or support != part.support:
        raise WireError(f"{part.count} values refer to {len(held.values)} of another mask or length")
    return part.decoded(held.values)


def _decode_values(part: CodedValues | CodedSparse, reference: Tensor | None) -> Values:
    if isinstance(part, CodedSparse):
        return part.decoded(part.support(), reference)
    return part.decoded(reference)
