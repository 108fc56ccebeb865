"""The Python blocks of the documentation run unchanged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ssfl import assemble
from ssfl.data.sources import load_arrays
from tests.support.assembled import config
from tests.support.paths import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    assert assemble.run(config(f"experiment.output_dir={folder}", "training.comm_round=4")) == 0
    (run,) = (folder / "digits").iterdir()
    return run


@pytest.mark.parametrize(
    ("page", "start"), [("README.md", "from ssfl.models.trained"), ("docs/models.md", "import json")]
)
def test_a_trained_network_answers_raw_rows_as_the_run_reported(
    page: str, start: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks(page) if block.startswith(start)]
    (place,) = re.findall(r'"(outputs/[^"]+\.safetensors)"', code)
    (tmp_path / place).parent.mkdir(parents=True)
    shutil.copy(trained / "model.safetensors", tmp_path / place)
    monkeypatch.chdir(tmp_path)
    arrays = load_arrays("digits")
    names: dict[str, Any] = {"rows": arrays.test_x}
    with torch.random.fork_rng(devices=[]):
        exec(code, names)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    hits = (names["logits"].argmax(1) == arrays.test_y).double().mean()
    assert float(hits) == pytest.approx(last["global_accuracy"])
    assert float(hits) > 0.5


def test_the_federation_of_the_ten_minute_page_learns(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/all-of-ssfl.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 26
    with torch.random.fork_rng(devices=[]):
        exec(code, {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(1, 9))
    assert float(rows[-1][1]) > 0.8
    assert (
        len({row[2] for row in rows}) == 1
    )  # the mask is known, so uploads have the same size in every round
