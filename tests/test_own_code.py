"""docs/write-a-method.md step by step: the installed command, in the folder of the user's files."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssfl.algorithms.base import Probe
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.config import load_config
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.data.sources import load_arrays
from ssfl.deploy.settings import own_code
from ssfl.engine.simulate import simulate
from ssfl.models import build_model
from tests.support.paths import ROOT

COMMAND = Path(sys.executable).with_name("ssfl")
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.layer = nn.Linear(input_shape[1] * input_shape[2], num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""
WORDS = (
    "preset=digits",
    "training.comm_round=2",
    "training.epochs=1",
    "training.client_num_in_total=4",
    "training.client_num_per_round=2",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "tracking.console=quiet",
    "algorithm.name=my_fedavg:MyFedAvg",
    "model.name=mynet:Net",
)


def blocks() -> list[str]:
    text = (ROOT / "docs" / "write-a-method.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's file and a network."""
    (tmp_path / "my_fedavg.py").write_text(blocks()[0])
    (tmp_path / "mynet.py").write_text(NET)
    return tmp_path


def ssfl(folder: Path, *words: str) -> str:
    done = subprocess.run([COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_fedavg_to_the_bit_and_its_setting_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(folder)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(blocks()[1], names)
    shown = json.loads(capsys.readouterr().out)
    assert len(shown) == 3
    assert shown[-1] > shown[0]

    def ended(method: Any) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = names["build_model"]("digits_cnn", 10, names["clients"].input_shape)
        theta = simulate(method, network, names["clients"], rounds=3, seed=1).theta
        assert theta is not None
        return theta

    assert names["result"].theta.equal(ended(FedAvg(names["fit"], per_round=5)))
    assert not ended(names["MyFedAvg"](names["fit"], 5, 0.5)).equal(names["result"].theta)
    sys.modules.pop("my_fedavg", None)


def test_the_variant_of_ssfl_is_ssfl_where_its_parts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SSFL's score and no proximal term; and each of its two parts counts."""
    (tmp_path / "salient.py").write_text(blocks()[2], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = vars(importlib.import_module("salient"))
    sys.modules.pop("salient")
    arrays = load_arrays("digits")
    clients = build_federation(arrays, PartitionSpec("dir", clients=6), default_preprocess(arrays))
    fit = FitSpec(epochs=1, batch_size=64, schedule=ExponentialDecay(0.1, 1.0))
    plain = Discovery(Probe(SNIP), 0.3)

    def ended(method: Any) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network = build_model("mlp", 10, clients.input_shape)
        theta = simulate(method, network, clients, rounds=2, seed=1).theta
        assert theta is not None
        return theta

    usual = ended(SSFL(fit, 3, plain))
    assert ended(names["Proximal"](fit, 3, plain, mu=0.0)).equal(usual)
    assert not ended(names["Proximal"](fit, 3, plain, mu=0.5)).equal(usual)
    other = ended(names["Proximal"](fit, 3, Discovery(Probe(names["SCORE"]), 0.3), mu=0.0))
    assert not other.ne(0).equal(usual.ne(0)), "the other score keeps other weights"


def test_a_local_deployment_allows_the_code_that_it_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    assert own_code(load_config(WORDS)) == ["--model", "mynet:Net", "--algorithm", "my_fedavg:MyFedAvg"]
    assert own_code(load_config(["preset=digits"])) == []
    sys.modules.pop("my_fedavg", None)


def test_run_resume_table_and_report_from_that_folder(folder: Path) -> None:
    ssfl(folder, "run", *WORDS, "algorithm.params.server_lr=0.5", "experiment.output_dir=out")
    (run,) = (folder / "out" / "digits").iterdir()
    started = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert (started["method"], started["model"]) == ("MyFedAvg", "mynet:Net")
    (run / "model.safetensors").rename(folder / "first.safetensors")
    ssfl(folder, "resume", str(run))
    assert (run / "model.safetensors").read_bytes() == (folder / "first.safetensors").read_bytes()
    assert "MyFedAvg" in ssfl(folder, "table", str(run))
    ssfl(folder, "report", str(run))
    assert "MyFedAvg" in (run / "report" / "comparison.csv").read_text()
    assert "model_exported.safetensors" in ssfl(folder, "export", str(run), "--format", "safetensors")


@pytest.mark.slow
def test_a_sweep_of_its_setting(folder: Path) -> None:
    ssfl(folder, "sweep", "--into", "mine", *WORDS, "algorithm.params.server_lr=1.0,0.5")
    table = ssfl(folder, "table", "mine")
    assert len([line for line in table.splitlines() if "MyFedAvg" in line and "1 of 1" in line]) == 2
    assert "server_lr" in table


def test_a_file_here_does_not_stand_in_for_a_library(folder: Path) -> None:
    (folder / "yaml.py").write_text("raise SystemExit('the wrong yaml')")
    assert "ssfl" in ssfl(folder, "keys", "algorithm.params.")


def test_a_deployment_does_not_look_for_code_among_a_sites_files(folder: Path) -> None:
    code = (
        "import sys\nfrom ssfl import cli\n"
        "sys.path = [p for p in sys.path if p]\n"
        "cli.VERBS = {**cli.VERBS, 'deploy': lambda a: 0, 'keys': lambda a: 0}\n"
        "cli.main([WORDS])\nimport os\nprint(os.getcwd() in sys.path)\n"
    )
    for words, found in (("'deploy', 'status'", "False"), ("'deploy', 'local'", "True"), ("'keys'", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("[WORDS]", f"[{words}]")],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == found, done.stderr
