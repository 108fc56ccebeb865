"""Error feedback: the coding error of a client's earlier replies, by coordinate, in the state of the sender's end.

Values with their own mask may have another mask in every reply (SparsyFed), so their errors are kept as a vector over
all coordinates; the error of a coordinate that is not sent is kept until it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssfl.core.payloads import DenseValues, MaskedValues, SparseValues
from ssfl.core.reading import octets
from ssfl.wire.holdings import State

ERRORS = "residual/"
"""Prefix of the errors of a part."""
MASKS = "residual_mask/"
"""Prefix of the digest of the mask that they belong to."""
Values = DenseValues | MaskedValues | SparseValues


def errors_at(name: str, part: Values, state: State) -> Tensor | None:
    """The kept errors [n] at the coordinates of a part's values; None if there are none or they belong to others."""
    kept = state.get(ERRORS + name)
    if kept is None:
        return None
    if isinstance(part, SparseValues):
        return kept[part.bits] if kept.shape == part.bits.shape else None
    if isinstance(part, MaskedValues):
        mask = state.get(MASKS + name)
        if mask is None or not mask.equal(octets(part.support)):
            return None
    return kept if kept.shape == part.values.shape else None


def with_errors(name: str, part: Values, errors: Tensor, state: State) -> State:
    """The state with the new errors [n] of a part's values."""
    if isinstance(part, SparseValues):
        kept = state.get(ERRORS + name)
        fits = kept is not None and kept.shape == part.bits.shape
        whole = (
            kept.clone() if kept is not None and fits else torch.zeros(part.bits.shape, dtype=errors.dtype)
        )
        whole[part.bits] = errors
        return {**state, ERRORS + name: whole}
    mask = {MASKS + name: octets(part.support)} if isinstance(part, MaskedValues) else {}
    return {**state, ERRORS + name: errors, **mask}
