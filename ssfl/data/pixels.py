"""Stored examples → network input: selected, augmented and normalised, in one pass if the kernels support it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from ssfl.data.preprocess import Augmentation, Preprocess
from ssfl.native.memory_bound.images import from_bytes, from_floats, serves


@final
@dataclass(frozen=True, eq=False)
class Pixels:
    """Examples of `source` [N, ...] as network input.

    channels_last: the memory format of images that the kernels make. native: whether the kernels may be used; the bits
    are the same.
    """

    source: Tensor
    preprocess: Preprocess
    channels_last: bool = False
    native: bool = True

    @cached_property
    def quick(self) -> bool:
        """Whether the kernels support these examples."""
        return self.native and serves(self.source)

    @cached_property
    def _table(self) -> Tensor:
        return self.preprocess.table(self.source.shape[1])

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        return self.preprocess.constants(self.source.shape[1])

    def of(self, rows: Tensor, draws: Augmentation | None = None) -> Tensor:
        """float32 [B, ...] of the rows int64 [B], augmented by their draws if there are any, normalised."""
        if not self.quick:
            x = self.source.index_select(0, rows.to(self.source.device))
            return self.preprocess.normalise(x if draws is None else self.preprocess.augment(x, draws))
        if self.source.is_floating_point():
            return from_floats(self.source, rows, *self._constants, self.channels_last)
        offsets, flips = (None, None) if draws is None else draws
        padding = self.preprocess.crop_padding
        return from_bytes(self.source, rows, self._table, self.channels_last, offsets, flips, padding)
