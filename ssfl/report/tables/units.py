"""Bytes and FLOPs in the unit that needs the fewest digits; 1 kB is 1,000 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final


@final
class Unit(NamedTuple):
    """A unit: its name and size in bytes (or FLOPs)."""

    name: str
    scale: float


SIZES = (Unit("GB", 1e9), Unit("MB", 1e6), Unit("kB", 1e3), Unit("B", 1))
FLOPS = (
    Unit("PFLOPs", 1e15),
    Unit("TFLOPs", 1e12),
    Unit("GFLOPs", 1e9),
    Unit("MFLOPs", 1e6),
    Unit("kFLOPs", 1e3),
    Unit("FLOPs", 1),
)
LEAST_FLOPS = 0.1
"""Smallest value in a unit: FLOPs have three digits, so that 0.151 TFLOPs is as precise as 151 GFLOPs."""


def size_text(size: float) -> str:
    """Bytes with a unit: 22.37 MB, 14.2 kB, 24 B."""
    unit = next((unit for unit in SIZES if size >= unit.scale), SIZES[-1])
    digits = {"kB": 1, "B": 0}.get(unit.name, 2)
    return f"{size / unit.scale:,.{digits}f} {unit.name}"


def flops_text(count: float) -> str:
    """FLOPs with a unit: 0.151 TFLOPs, 28.6 MFLOPs."""
    unit = next((unit for unit in FLOPS if count >= LEAST_FLOPS * unit.scale), FLOPS[-1])
    return f"{count / unit.scale:,.3g} {unit.name}"


def size_unit(sizes: Sequence[float | None]) -> Unit:
    """The unit of a column: megabytes, or kilobytes if no entry reaches 0.1 MB."""
    return SIZES[1] if _largest(sizes) >= 1e5 or not _largest(sizes) else SIZES[2]


def flops_unit(counts: Sequence[float | None]) -> Unit:
    """The unit of a column: teraFLOPs, or a smaller unit if no entry reaches a tenth of it."""
    largest = _largest(counts)
    if not largest:
        return FLOPS[1]
    return next((unit for unit in FLOPS[1:] if largest >= LEAST_FLOPS * unit.scale), FLOPS[-1])


def _largest(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)
