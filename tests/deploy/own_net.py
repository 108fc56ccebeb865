"""Custom networks of a site."""

from __future__ import annotations

from torch import Tensor, nn


class Net(nn.Module):
    """One linear layer over 4 features."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x)
        return out


class Tokens(nn.Module):
    """An embedding of 40 token numbers, summed, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.embedding(x).sum(1))
        return out
