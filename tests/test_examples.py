"""The examples run unchanged, and are as short as documented."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LEAST_ACCURACY = {"own_model_and_data.py": 0.7, "own_batch_order.py": 0.9, "fedprox.py": 0.7}


def code_lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def test_every_example_is_run_here() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(LEAST_ACCURACY)


def test_own_model_and_data_stays_under_40_lines() -> None:
    assert code_lines(EXAMPLES / "own_model_and_data.py") < 40


@pytest.mark.parametrize("name", LEAST_ACCURACY)
def test_example_runs_and_learns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    accuracies = re.findall(r"^accuracy ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert float(accuracies[-1]) >= LEAST_ACCURACY[name]
    assert list(tmp_path.iterdir()) == []
