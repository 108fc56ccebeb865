"""The small network of the authors' DisPFL and SparsyFed numbers, and functions that read these numbers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent.parent / "oracles"


class OracleNet(nn.Module):
    """[B, 3, 8, 8] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, 8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


NAMES = tuple(name for name, _ in OracleNet().named_parameters())


@cache
def arrays(method: str) -> dict[str, Tensor]:
    """All arrays of one file."""
    with np.load(FOLDER / f"{method}.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@cache
def settings(method: str) -> dict[str, Any]:
    """Settings and scalars."""
    read: dict[str, Any] = json.loads((FOLDER / f"{method}.json").read_text())
    return read


def flat(method: str, prefix: str) -> Tensor:
    """One model or mask [P], its tensors in the network's order."""
    return torch.cat([arrays(method)[f"{prefix}/{name}"].flatten() for name in NAMES])


class InOrder:
    """Batches in stored order; the scoring minibatch is the first."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        return torch.arange(examples)

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        return torch.arange(min(batch_size, examples))
