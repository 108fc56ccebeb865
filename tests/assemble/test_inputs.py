"""Digests distinguish different data sets and different networks."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ssfl.assemble.inputs import ChangedInputError, check_inputs, data_digest, input_digests, network_digest
from ssfl.core.layout import Layout
from ssfl.data.arrays import Arrays
from tests.support.assembled import run_setup


def arrays() -> Arrays:
    x = torch.arange(24, dtype=torch.float32).view(6, 4)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    return Arrays("mine", 2, ("a", "b"), x, y, x + 1, y)


def test_every_part_of_the_data_counts() -> None:
    one = arrays()
    assert data_digest(one) == data_digest(arrays())
    others = [
        replace(one, train_y=one.train_y.flip(0)),
        replace(one, test_x=one.test_x[:4], test_y=one.test_y[:4]),
        replace(one, train_x=one.train_x + 1e-6),
        replace(one, class_names=("b", "a")),
        replace(one, train_site=torch.zeros(6, dtype=torch.int64)),
    ]
    assert len({data_digest(a) for a in (one, *others)}) == 1 + len(others)
    assert data_digest(replace(one, name="other")) == data_digest(one)


SOURCE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 2)
    def forward(self, x):
        return self.a(x)
"""


def network(folder: Path, name: str, source: str) -> nn.Module:
    (folder / f"{name}.py").write_text(source)
    made = importlib.import_module(name).Net()
    assert isinstance(made, nn.Module)
    return made


def test_a_networks_meaning_counts_and_its_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    sources = {
        "net_one": SOURCE,
        "net_two": SOURCE.replace("return self.a(x)", "return self.a(x)  # logits"),
        "net_three": SOURCE.replace("self.a(x)", "-self.a(x)"),
        "net_four": SOURCE.replace("4, 2", "4, 3"),
    }
    found = {}
    for name, source in sources.items():
        made = network(tmp_path, name, source)
        found[name] = network_digest(made, Layout.of(made))
    assert found["net_one"] == found["net_two"]
    assert len({found["net_one"], found["net_three"], found["net_four"]}) == 3


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    setup = run_setup()
    digests = input_digests(setup)
    check_inputs(None, setup, digests, tmp_path)
    check_inputs(dict(digests), setup, digests, tmp_path)
    for what, key in (("data", "dataset.name=digits"), ("network", "model.name=digits_cnn")):
        with pytest.raises(ChangedInputError, match=rf"the {what} \({key}\) changed"):
            check_inputs({**digests, what: "another"}, setup, digests, tmp_path)
