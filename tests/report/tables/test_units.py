"""Bytes and FLOPs in the unit that needs few digits."""

from __future__ import annotations

import pytest

from ssfl.report.tables.units import flops_text, flops_unit, size_text, size_unit


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 FLOPs"),
        (28_600, "28.6 kFLOPs"),
        (2.86e7, "28.6 MFLOPs"),
        (3.1e9, "3.1 GFLOPs"),
        (1.51e11, "0.151 TFLOPs"),
        (8.33e15, "8.33 PFLOPs"),
    ],
)
def test_flops(count: float, text: str) -> None:
    assert flops_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (30_000, "30.0 kB"), (20_160_000, "20.16 MB"), (44.7e9, "44.70 GB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


def test_a_column_has_one_unit_by_its_largest_entry() -> None:
    assert size_unit([30_000, 2_000, None]).name == "kB"
    assert size_unit([30_000, 300_000]).name == "MB"
    assert size_unit([None]).name == "MB"
    assert [flops_unit([c]).name for c in (0, 3e5, 2.86e7, 2e12, 8e15)] == [
        *("TFLOPs", "MFLOPs", "MFLOPs", "TFLOPs", "TFLOPs")
    ]
