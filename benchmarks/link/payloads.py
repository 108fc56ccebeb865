"""The payloads of the benchmark: those of a ResNet18 (CIFAR stem, 11 M parameters), dense and on a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from benchmarks.ours import our_module
from benchmarks.workload import workload
from ssfl.algorithms.base import MASK
from ssfl.assemble.communication import wire_of
from ssfl.config import load_config
from ssfl.core.layout import Layout
from ssfl.core.masks import random_global_mask
from ssfl.core.payloads import SCORES, DenseValues, MaskBits, MaskedValues, Payload, Support
from ssfl.wire.stack import WireStack

SEED = 5
SMALL_COORDINATES = 125_000
"""0.5 MB of float32: the message on which the fixed cost of a round is measured."""
SMALL_DENSITY = 0.0103
"""Density that keeps about as many of the network's coordinates."""


@dataclass(frozen=True)
class Cell:
    """What travels each way: `kind` "dense", "masked" (at `density`), "small"; "discovery": scores up, a mask down."""

    kind: str
    density: float = 1.0
    profile: str = "exact"
    """`communication.profile`, or "authors": masks with one byte per entry, as in the authors' port to Flower."""

    @property
    def name(self) -> str:
        """The cell's name in the table."""
        name = f"masked {self.density:g}" if self.kind == "masked" else self.kind
        way = "authors' way" if self.profile == "authors" else f"{self.profile} profile"
        return name if self.profile == "exact" else f"{name}, {way}"

    @property
    def phase(self) -> str:
        """The cell as the name of a phase, for the sites."""
        return f"{self.kind} {self.density:g} {self.profile}"

    @staticmethod
    def of(phase: str) -> Cell:
        """The cell that a phase names."""
        kind, density, profile = phase.split()
        return Cell(kind, float(density), profile)


@cache
def layout() -> Layout:
    """The network's layout."""
    return Layout.of(our_module(workload("resnet18")))


@cache
def model() -> Tensor:
    """Values [P] that do not compress."""
    return torch.randn(layout().size, generator=torch.Generator().manual_seed(SEED))


@cache
def support(density: float) -> Support:
    """A random mask of that density."""
    bits = random_global_mask(layout().prunable_size, density, torch.Generator().manual_seed(SEED))
    return Support.of(layout().expand_mask(bits))


@cache
def packed(density: float) -> MaskedValues:
    """The model's values on the mask."""
    return support(density).pack(model())


@cache
def wire(profile: str) -> WireStack:
    """The codecs of both sides."""
    known = "exact" if profile == "authors" else profile
    return wire_of(load_config([f"communication.profile={known}"]), layout())


def trained(received: Payload, sender: int, turn: int) -> Payload:
    """A reply like that of training: what was received and a normal difference, 1 % of the weights' deviation."""
    if "w" not in received.parts:
        return Payload(
            {SCORES: DenseValues(model()[: layout().prunable_size].abs() + turn + sender / 8)}, sender
        )
    part = received.parts["w"]
    assert isinstance(part, DenseValues | MaskedValues)
    change = torch.randn(part.values.shape, generator=torch.Generator().manual_seed(turn * 100 + sender))
    return Payload({"w": replace(part, values=part.values + 0.01 * change)}, sender)


def density_of(cell: Cell) -> float:
    """Density of the mask on which a cell's values lie."""
    return SMALL_DENSITY if cell.kind == "small" else cell.density


def payload(cell: Cell, sender: int, turn: int) -> Payload:
    """A round's payload; other bytes every turn, since equal ones would be stored once."""
    if cell.kind == "discovery":
        bits = random_global_mask(layout().prunable_size, cell.density, torch.Generator().manual_seed(turn))
        if cell.profile != "authors":
            return Payload({MASK: MaskBits(bits)}, sender)
        return Payload({"bytes": DenseValues(torch.randn(len(bits) // 4) + turn)}, sender)
    if cell.kind == "dense":
        return Payload({"w": DenseValues(model() + turn + sender / 8)}, sender)
    kept = packed(density_of(cell))
    return Payload({"w": replace(kept, values=kept.values + turn + sender / 8)}, sender)
