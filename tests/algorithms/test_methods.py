"""The table of methods, and a custom method: one file with its own setting."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor

from ssfl import cli
from ssfl.algorithms.base import Algorithm
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.method import KEYS, Method, MethodError, Recipe, method_of_class
from ssfl.algorithms.ssfl import Mode
from ssfl.algorithms.table import METHODS, find_method
from ssfl.assemble.build import setup_of
from ssfl.config import (
    ConfigError,
    ConfigWarning,
    config_digest,
    config_from_yaml,
    config_to_yaml,
    load_config,
    unread_keys,
)
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.engine.simulate import simulate
from ssfl.settings import setting, settings_of
from tests.support.paths import ROOT
from tests.support.rigs import float_data, tiny_net

WORDS = [
    "preset=digits",
    "training.comm_round=2",
    "training.epochs=1",
    "training.client_num_in_total=4",
    "training.client_num_per_round=2",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "tracking.console=quiet",
]


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    shutil.copy(ROOT / "examples" / "fedprox.py", tmp_path / "own_fedprox.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    find_method.cache_clear()
    yield "own_fedprox:METHOD"
    sys.modules.pop("own_fedprox", None)
    find_method.cache_clear()


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_is_a_method(name: str) -> None:
    method = find_method(name)
    assert isinstance(method, Method)
    assert is_dataclass(method.settings)
    assert method.label(method.settings())
    assert set(method.reads) <= set(KEYS)
    read = {key for name in method.reads for key in KEYS[name]}
    assert {*method.unread_keys(method.settings()), *read} == {key for keys in KEYS.values() for key in keys}


@pytest.mark.parametrize("mode", ["random_global", "random_layerwise", "random_clientwise"])
def test_settings_of_scores_have_no_effect_on_random_masks(mode: str) -> None:
    """Setting one is warned of, also to a value that SSFL would refuse; runs and sweeps record them as unread."""
    words = [*WORDS, f"algorithm.params.mode={mode}"]
    without_effect = {"algorithm.params.warmup_rounds", "algorithm.params.method", "model.itersnip_iteration"}
    assert without_effect <= set(unread_keys(load_config(words)))
    with pytest.warns(
        ConfigWarning, match=r"warmup_rounds has no effect with the other settings of algorithm=ssfl"
    ):
        load_config([*words, "algorithm.params.warmup_rounds=1000"])
    assert not without_effect & set(unread_keys(load_config(WORDS)))


def test_warmup_rounds_override_initial_mask_freq() -> None:
    overridden = "algorithm.params.initial_mask_freq"
    assert overridden in unread_keys(load_config([*WORDS, "algorithm.params.warmup_rounds=2"]))
    assert overridden not in unread_keys(load_config(WORDS))


@pytest.mark.parametrize(
    "words",
    [
        ["algorithm=dispfl"],
        ["algorithm=sparsyfed"],
        *([f"algorithm.params.mode={mode}"] for mode in get_args(Mode)),
    ],
    ids=lambda words: words[0],
)
def test_a_density_that_keeps_no_weight_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"model\.dense_ratio=1e-06: .*at least"):
        setup_of(load_config([*WORDS, *words, "model.dense_ratio=1e-6"]))


def test_unknown_names_are_refused() -> None:
    for name, reason in (
        ("nope", "no such method"),
        ("ssfl.algorithms.ssfl:NOPE", "has no NOPE"),
        ("no_such_module_x:A", "importing no_such_module_x failed"),
        ("ssfl.algorithms.base:sample_clients", "is no class"),
        ("ssfl.settings:SettingError", "is not a dataclass"),
    ):
        with pytest.raises(MethodError, match=reason):
            find_method(name)


def test_a_method_of_ones_own_touches_one_file(own_method: str, tmp_path: Path) -> None:
    """Its setting is validated, recorded, read back, part of the digest; run, resume, report and table support it."""
    words = [*WORDS, f"algorithm.name='{own_method}'", "algorithm.params.mu=0.5"]
    config = load_config(words)
    assert config.algorithm.params.mu == 0.5
    assert config_from_yaml(config_to_yaml(config)) == config
    assert config_digest(config) != config_digest(load_config([*words, "algorithm.params.mu=0.1"]))
    with pytest.raises(ConfigError, match=r"algorithm.params.mu=-1: must be at least 0"):
        load_config([*words, "algorithm.params.mu=-1"])
    assert cli.main(["run", *words, "experiment.output_dir=out"]) == 0
    (folder,) = (tmp_path / "out" / "digits").iterdir()
    started = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert (started["method"], started["density"]) == ("FedProx", 1.0)
    assert cli.main(["resume", str(folder)]) == 0
    assert cli.main(["table", str(folder)]) == 0
    assert cli.main(["report", str(folder)]) == 0


def test_its_setting_has_an_effect(own_method: str) -> None:
    """FedProx with mu = 0 is FedAvg to the bit; with mu = 5 the model after round 1 is closer to the initial one."""
    method = find_method(own_method)
    fit = FitSpec(2, 8, ExponentialDecay(0.1, 1.0))
    layout = Layout.of(tiny_net())
    recipe = Recipe(fit, fit, 2, 1, layout, 1.0, 1, 0.5, 1.0)

    def moved(algorithm: Algorithm[Any]) -> Tensor:
        theta = simulate(algorithm, tiny_net(), float_data(), rounds=1, seed=1).theta
        assert theta is not None
        return theta - layout.flatten(tiny_net())

    plain = moved(FedAvg(fit, 2))
    assert moved(method.build(method.settings(mu=0.0), recipe)).equal(plain)
    assert moved(method.build(method.settings(mu=5.0), recipe)).norm() < 0.9 * plain.norm()


@dataclass(frozen=True)
class Wrong:
    """An algorithm with a field that is not in the recipe."""

    fit: object
    radius: float


@dataclass(frozen=True)
class Right:
    """An algorithm whose fields come from the recipe, except its own setting."""

    fit: object
    density: float
    radius: float = setting(2.0, "a radius", above=0)


def test_the_method_of_a_class() -> None:
    with pytest.raises(MethodError, match="the field radius has no value"):
        method_of_class(Wrong)
    method = method_of_class(Right)
    assert method.reads_density
    assert list(settings_of(method.settings)) == ["radius"]
    recipe = Recipe(*("fit", "tune", 2, 1, None, 0.3, 1, 0.5, 1.0))  # type: ignore[arg-type]
    made: object = method.build(method.settings(radius=3.0), recipe)
    assert made == Right("fit", 0.3, 3.0)
