"""Both implementations compute the same convolution, and every part is timed."""

from __future__ import annotations

import pytest

from benchmarks import bench_convolutions
from benchmarks.bench_convolutions import PARTS, figures
from ssfl.native import available

pytestmark = pytest.mark.skipif(not available(), reason="the kernels were not built")


def test_every_part_is_timed_and_near_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_convolutions, "LAYERS", ((16, 32, 6, 1), (16, 32, 6, 2)))
    rows = {row.name: row for row in figures(2)}
    for part in (f"{stride}{part}" for stride in ("", "stride 2, ") for part in PARTS):
        name = f"16 to 32 channels, 6x6, {part}"
        assert rows[f"{name}: ours"].against == "library"
        assert rows[f"{name}: ours"].n == 2
        for who in ("library", "ours"):
            assert 0 < rows[f"{name}: error, {who}"].value < 1e-5
