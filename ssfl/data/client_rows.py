"""The rows of each client, for any number of clients, in one tensor and one array."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import final, overload

import torch
from torch import Tensor


@final
class ClientRows(Sequence[Tensor]):
    """Each client's row numbers (int64), as views of one vector that are created on access.

    One tensor per client would need about 1 KB in addition to its rows, in every process: 10 MB for 10,000 clients.
    """

    def __init__(self, parts: Iterable[Tensor]) -> None:
        each = list(parts)
        self.rows = torch.cat(each) if each else torch.zeros(0, dtype=torch.int64)
        # Not a tensor: blocks of small clients read many numbers, which is slow from a tensor.
        self.ends = array("q", accumulate(map(len, each), initial=0))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, client: int) -> Tensor: ...
    @overload
    def __getitem__(self, client: slice) -> list[Tensor]: ...
    def __getitem__(self, client: int | slice) -> Tensor | list[Tensor]:
        if isinstance(client, slice):
            return [self[k] for k in range(*client.indices(len(self)))]
        if not -len(self) <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        own = client % len(self)
        return self.rows[self.ends[own] : self.ends[own + 1]]
