"""The GPU benchmark runs on a CPU with a tiny model; without a device it reports that it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu


def test_every_contestant_has_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    bench_gpu.main(["--device", "cpu", "--quick", "--precision", "fp32", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())}
    for name in bench_gpu.CONTESTANTS:
        seconds = rows[f"tiny, fp32: {name}: round"]["value"]
        assert rows[f"tiny, fp32: {name}: images"]["value"] == pytest.approx(60 / seconds)
        assert rows[f"tiny, fp32: {name}: 999 rounds, projected"]["value"] == pytest.approx(999 * seconds)
        assert 0 < rows[f"tiny, fp32: {name}: model FLOP utilisation"]["value"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")
@pytest.mark.parametrize("words", [[], ["--device", "cpu"]])
def test_without_a_device_nothing_is_measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bench_gpu.main(words)
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "nothing is measured" in output
