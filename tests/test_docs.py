"""The Python blocks of the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssfl.models import build_model

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def test_the_readmes_three_lines_load_an_exported_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("README.md")
    (place,) = re.findall(r'"(outputs/[^"]+\.safetensors)"', code)
    with torch.random.fork_rng(devices=[]):
        net = build_model("digits_cnn", num_classes=10, input_shape=(1, 8, 8))
    (tmp_path / place).parent.mkdir(parents=True)
    save_file(net.state_dict(), tmp_path / place)
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        exec(code, names)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert names["net"](x).equal(net(x))


def test_the_federation_of_the_ten_minute_page_learns(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/all-of-ssfl.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 26
    with torch.random.fork_rng(devices=[]):
        exec(code, {})
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in told] == list(range(1, 9))
    assert float(told[-1][1]) > 0.8
    assert len({row[2] for row in told}) == 1  # the mask is known: every round's uploads are equally large
