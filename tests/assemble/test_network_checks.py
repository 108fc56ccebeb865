"""Custom networks and data: one-line errors before a run starts, and automatic choices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssfl.assemble.build import RunSetup
from ssfl.assemble.execution import choice_on_device, resolve_engine
from ssfl.assemble.network_checks import lone_examples_text
from ssfl.config import ConfigError
from ssfl.models import ModelError
from ssfl.models.trained import TrainedNetwork
from tests.support.assembled import run_setup

HERE = "model.name=tests.assemble.test_network_checks:"


class Own(nn.Module):
    """A network without PyTorch's layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(num_classes, 64) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w)


class Declared(Own):
    prunable_parameters = ("w",)


class Norm(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.n(self.a(x.flatten(1)))))


class BatchStatistics(Norm):
    """Needs two examples, also in evaluation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.n = nn.BatchNorm1d(8, track_running_stats=False)


class Circular(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        padded = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
        super().__init__(padded, nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes))


class Fickle(Norm):
    """Branches on a value and draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.a(x.flatten(1)), 0.1, self.training)
        return self.b(h if float(h.detach().sum()) > 0 else -h)


class View(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool2d(F.relu(self.c(x)), 2).view(-1, 256))


class Stubborn(Norm):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no training\nhere")
        return super().forward(x)


class Tokens(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.e, self.head = nn.Embedding(40, 8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.e(x).mean(1))


@pytest.mark.parametrize("method", ["ssfl", "dispfl", "sparsyfed"])
def test_nothing_to_prune_is_one_line_with_ways_out(method: str) -> None:
    with pytest.raises(ConfigError, match=r"algorithm=fedavg, or .*prunable_parameters"):
        run_setup(f"{HERE}Own", f"algorithm={method}")


def test_declared_parameters_are_pruned() -> None:
    assert run_setup(f"{HERE}Declared", "algorithm=ssfl").layout.prunable_size == 640
    assert run_setup(f"{HERE}Own", "algorithm=fedavg").layout.prunable_size == 0


def test_a_network_that_does_not_train_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"fails in a training step .*no training here"):
        run_setup(f"{HERE}Stubborn", "algorithm=fedavg")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("BatchStatistics", "algorithm=ssfl", "algorithm.params.method=synflow"),
            r"phase score .*algorithm\.params\.method=ssfl",
        ),
        (("Circular", "algorithm=sparsyfed"), r"padding_mode='circular'.*algorithm\.params"),
    ],
)
def test_a_network_that_the_method_cannot_use_is_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        run_setup(HERE + words[0], *words[1:])
    assert "\n" not in str(found.value)


def test_a_setting_without_that_step_serves() -> None:
    ours = run_setup(f"{HERE}BatchStatistics", "algorithm=ssfl", "algorithm.params.method=ssfl")
    plain = run_setup(f"{HERE}Circular", "algorithm=sparsyfed", "algorithm.params.prune_activations=false")
    assert all(setup.layout.prunable_size > 0 for setup in (ours, plain))


# ── minibatches of one ───────────────────────────────────────────────────────────────────────────────────────────
def test_batch_norm_and_batches_of_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 or more"):
        run_setup(f"{HERE}Norm", "algorithm=fedavg", "training.batch_size=1")
    run_setup(f"{HERE}Own", "algorithm=fedavg", "training.batch_size=1")


def lone_text(setup: RunSetup, size: int) -> str:
    training = replace(setup.config.training, batch_size=size)
    return lone_examples_text(replace(setup.config, training=training), setup.federation, setup.module)


def test_what_becomes_of_a_lone_example_is_said() -> None:
    setup = run_setup(f"{HERE}Norm", "algorithm=fedavg")
    counts = list(setup.context.example_counts.values())
    size = counts[0] - 1
    alike = counts.count(counts[0])
    none = max(counts)
    assert f"the last minibatch of {alike} client" in lone_text(setup, size)
    assert "training.lone_example=join" in lone_text(setup, size)
    assert lone_text(setup, none) == ""
    assert lone_text(run_setup(), size) == ""  # GroupNorm takes one example


# ── executors ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("network", "word", "message"),
    [
        ("Fickle", "engine.executor=batched", "a layer of this network draws at random"),
        ("Fickle", "engine.executor=threads", "draws at random"),
        ("View", "engine.memory_format=channels_last", "view size is not compatible"),
    ],
)
def test_what_was_asked_for_and_cannot_serve_is_one_line(network: str, word: str, message: str) -> None:
    setup = run_setup(f"{HERE}{network}", "algorithm=fedavg", "engine.block=auto", word)
    with pytest.raises(ConfigError, match=message) as found:
        resolve_engine(setup.config, setup)
    assert "\n" not in str(found.value)
    assert str(found.value).count(word) == 1


@pytest.mark.parametrize("network", ["Fickle", "View", "Norm"])
def test_auto_finds_an_executor_for_every_network(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    free = ("engine.executor=auto", "engine.block=auto", "engine.memory_format=auto", "engine.workers=2")
    setup = run_setup(f"{HERE}{network}", "algorithm=fedavg", *free)
    chosen = resolve_engine(setup.config, setup).engine
    assert chosen.executor != "auto"
    if network == "Fickle":
        assert chosen.executor in ("sequential", "processes")
        assert chosen.block == 1
    if network == "View":
        assert chosen.memory_format == "contiguous"


def test_a_device_takes_blocks_for_networks_that_compute_in_them_alone() -> None:
    for network, expected in (("Fickle", "sequential"), ("View", "batched"), ("Norm", "batched")):
        setup = run_setup(f"{HERE}{network}", "algorithm=fedavg", "engine.executor=auto", "engine.block=auto")
        assert choice_on_device(setup.config, setup, 2).executor == expected


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────
def tokens(folder: Path) -> tuple[str, ...]:
    numbers = np.random.default_rng(0).integers(0, 40, (80, 5))
    np.savez(folder / "tokens.npz", train_x=numbers, train_y=np.arange(80) % 4)
    return f"dataset.name={folder / 'tokens.npz'}", "dataset.partition_method=iid", "algorithm=fedavg"


def test_token_numbers_reach_the_network_unchanged(tmp_path: Path) -> None:
    words = tokens(tmp_path)
    setup = run_setup(*words, f"{HERE}Tokens", "dataset.features=unchanged")
    x, _ = next(setup.federation.train_batches(0, torch.arange(4), 4, None))
    assert x.dtype == torch.int64
    file = np.load(tmp_path / "tokens.npz")["train_x"]
    rows = {tuple(row) for row in file.tolist()}
    assert all(tuple(row) in rows for row in x.tolist())


def test_floats_for_an_embedding_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"dataset\.features=unchanged"):
        run_setup(*tokens(tmp_path), f"{HERE}Tokens")


def test_what_cannot_be_unchanged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'mlp' takes floats"):
        run_setup(*tokens(tmp_path), "model.name=mlp", "dataset.features=unchanged")
    with pytest.raises(ConfigError, match=r"dataset\.features=unchanged.* for tables"):
        run_setup("dataset.features=unchanged")


def test_a_trained_network_takes_token_numbers_as_they_are(tmp_path: Path) -> None:
    setup = run_setup(*tokens(tmp_path), f"{HERE}Tokens", "dataset.features=unchanged")
    assert setup.inputs is not None
    assert setup.inputs.input_dtype == "int64"
    x = torch.randint(0, 40, (3, 5), generator=torch.Generator().manual_seed(0))
    assert TrainedNetwork(setup.module, setup.inputs, 1)(x).equal(setup.module(x))
