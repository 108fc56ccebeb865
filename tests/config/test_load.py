"""The published command, groups, precedence, warnings, and reading YAML back."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ssfl.algorithms.table import METHODS
from ssfl.config import (
    Config,
    ConfigError,
    ConfigWarning,
    config_digest,
    config_from_yaml,
    config_to_yaml,
    load_config,
)
from ssfl.config.keys import common_keys, keys_of, value_of
from ssfl.config.load import conf_dir

PUBLISHED = [
    "model.dense_ratio=0.3",
    "training.client_num_in_total=100",
    "training.frac=0.1",
    "training.epochs=5",
    "training.comm_round=1000",
    "experiment.seed=550",
    "wandb.exp_name=SSFL_dsn0.5",
]

PUBLISHED_SECTIONS = {
    "algorithm": "name",
    "algorithm.params": "mode method initial_mask_freq warmup_rounds",
    "optimizer": "client_optimizer lr lr_decay momentum wd scheduler scheduler_cycle_len",
    "training": "batch_size epochs comm_round frac client_num_in_total client_num_per_round "
    "frequency_of_the_test max_workers",
    "model": "name dense_ratio anneal_factor cs itersnip_iteration erk_power_scale",
    "dataset": "name data_dir partition_method partition_alpha public_portion data_loader_max_workers",
    "experiment": "seed gpu ci tag debug_mode",
    "wandb": "mode project exp_name",
}


LEFTOVERS = tuple(key for key, declared in common_keys().items() if declared.unread)


def _keys(value: Any, prefix: str = "") -> list[str]:
    if not dataclasses.is_dataclass(value):
        return [prefix]
    names = [field.name for field in dataclasses.fields(value)]
    return [key for name in names for key in _keys(getattr(value, name), f"{prefix}.{name}".strip("."))]


def test_published_command_parses() -> None:
    config = load_config(PUBLISHED)
    assert config.model.dense_ratio == 0.3
    assert (config.training.client_num_in_total, config.training.frac) == (100, 0.1)
    assert (config.training.epochs, config.training.comm_round) == (5, 1000)
    assert (config.experiment.seed, config.wandb.exp_name) == (550, "SSFL_dsn0.5")


@pytest.mark.parametrize("section", PUBLISHED_SECTIONS)
def test_every_published_key_exists(section: str) -> None:
    published = {f"{section}.{name}" for name in PUBLISHED_SECTIONS[section].split()}
    declared = keys_of(Config())
    assert {
        key for key, one in declared.items() if one.published and key.rpartition(".")[0] == section
    } == published


def test_defaults_are_the_papers_cifar10_recipe() -> None:
    # paper-level facts: batch 16, 5 local epochs, SGD 0.1 * 0.998 ** round, no momentum, wd 5e-4, clip 10,
    # 10 of 100 clients, Dirichlet 0.3, ResNet18, density 0.5
    config = load_config([])
    assert (config.training.batch_size, config.training.epochs) == (16, 5)
    assert (config.optimizer.lr, config.optimizer.lr_decay, config.optimizer.momentum) == (0.1, 0.998, 0.0)
    assert (config.optimizer.wd, config.optimizer.clip_norm) == (5e-4, 10.0)
    assert (config.dataset.name, config.dataset.partition_alpha) == ("cifar10", 0.3)
    assert (config.model.name, config.model.dense_ratio) == ("resnet18", 0.5)


def test_files_and_schema_say_the_same() -> None:
    assert load_config([]) == Config()
    assert load_config(["preset=cifar10", "wandb.exp_name=ssfl"]) == Config()


def test_cifar100_differs_in_the_five_known_things() -> None:
    ours, theirs = load_config(["preset=cifar100"]), load_config(["preset=cifar10"])
    left_out = ("dataset.name", "wandb.exp_name")
    differ = {key for key in _keys(ours) if value_of(ours, key) != value_of(theirs, key)} - set(left_out)
    # the fifth, the batch size of scoring, is that of training
    assert differ == {"training.epochs", "training.batch_size", "optimizer.momentum", "optimizer.scheduler"}


def test_every_file_of_conf_loads() -> None:
    for path in conf_dir().glob("preset/*.yaml"):
        load_config([f"preset={path.stem}"])
    for name in METHODS:
        assert load_config([f"algorithm={name}"]).algorithm.name == name
    for mode in keys_of(Config())["algorithm.params.mode"].words:
        assert load_config([f"algorithm/mode={mode}"]).algorithm.params.mode == mode


def test_the_two_spellings_of_mode_and_algorithm() -> None:
    by_group = load_config(["algorithm/mode=random_global"])
    assert by_group == load_config(["algorithm.params.mode=random_global"])
    assert load_config(["algorithm=fedavg"]) == load_config(["algorithm.name=fedavg"])


def test_command_line_wins_over_preset_whatever_the_order() -> None:
    first = load_config(["training.comm_round=3", "preset=digits"])
    assert first.training.comm_round == 3
    assert first == load_config(["preset=digits", "training.comm_round=3"])
    assert load_config(["training.epochs=2", "training.epochs=4"]).training.epochs == 4


def test_names_made_of_digits_stay_text_and_references_resolve() -> None:
    assert load_config(["experiment.tag=1e3"]).experiment.tag == "1e3"
    named = load_config(["model.dense_ratio=0.2", "wandb.exp_name=dsn${model.dense_ratio}"])
    assert named.wandb.exp_name == "dsn0.2"
    assert load_config(["dataset.data_dir='/a b (c)'"]).dataset.data_dir == "/a b (c)"


@pytest.mark.parametrize("key", LEFTOVERS)
def test_leftovers_warn_only_when_set(key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config([])
    with pytest.warns(ConfigWarning, match=key):
        load_config([f"{key}={value_of(config, key) or 1}"])


def test_keys_that_a_method_ignores_warn() -> None:
    with pytest.warns(ConfigWarning, match=r"model.dense_ratio has no effect: algorithm=fedavg"):
        load_config(["algorithm=fedavg", "model.dense_ratio=0.3"])


@pytest.mark.parametrize(
    ("word", "others", "useful"),
    [
        ("optimizer.lr_decay=0.5", "optimizer.scheduler=cosine_annealing", "optimizer.scheduler=default"),
        ("optimizer.final_lr=0.5", "optimizer.scheduler=default", "optimizer.scheduler=geometric"),
        (
            "optimizer.scheduler_cycle_len=3",
            "optimizer.scheduler=geometric",
            "optimizer.scheduler=cosine_annealing",
        ),
        ("training.frac=0.5", "training.client_num_per_round=5", "training.client_num_per_round=-1"),
        ("dataset.partition_alpha=2", "dataset.partition_method=iid", "dataset.partition_method=patho"),
        (
            "algorithm.params.neighbours=3",
            "algorithm.params.topology=ring",
            "algorithm.params.topology=random",
        ),
    ],
)
def test_keys_that_other_keys_leave_without_effect_warn(word: str, others: str, useful: str) -> None:
    common = ["algorithm=dispfl"]
    with pytest.warns(ConfigWarning, match=f"{word.partition('=')[0]} has no effect with the other settings"):
        unread = load_config([*common, others, word])
    assert config_digest(unread) == config_digest(load_config([*common, others]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = load_config([*common, useful, word])
    assert config_digest(read) != config_digest(load_config([*common, useful]))


def test_references_to_the_methods_keys_resolve() -> None:
    assert load_config(["wandb.exp_name=m_${algorithm.params.mode}"]).wandb.exp_name == "m_static"
    named = load_config(["wandb.exp_name=m_${algorithm.params.mode}", "algorithm.params.mode=random_global"])
    assert named.wandb.exp_name == "m_random_global"
    for word in (
        "wandb.exp_name=${no.such}",
        "algorithm.name=${no.such}",
        "training.epochs=${wandb.exp_name}",
    ):
        with pytest.raises(
            ConfigError, match=f"^{re.escape(word)}: must be|^{word.partition('=')[0]}="
        ) as found:
            load_config([word])
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("key", ["training.epochs", "optimizer.lr"])
def test_numbers_of_many_digits_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"must be below 2\*\*64"):
        load_config([f"{key}=1{'0' * 400}"])


def test_another_methods_key_warns_and_changes_nothing() -> None:
    with pytest.warns(ConfigWarning, match=r"algorithm.params.beta has no effect: algorithm=ssfl"):
        config = load_config(["algorithm.params.beta=2"])
    assert config == load_config([])


def test_every_leaf_is_declared() -> None:
    for name in METHODS:
        config = load_config([f"algorithm={name}"])
        assert set(_keys(config)) - {"algorithm.params"} == set(keys_of(config))


@settings(max_examples=12, deadline=None)
@given(
    density=st.floats(1e-6, 1),
    rate=st.floats(1e-9, 1e3),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,20}", fullmatch=True),
    tag=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12).filter(
        lambda text: "$" not in text
    ),
    block=st.one_of(st.just("auto"), st.integers(1, 99)),
)
def test_yaml_round_trip(
    density: float, rate: float, name: str, tag: str, block: int | Literal["auto"]
) -> None:
    base = Config()
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, dense_ratio=density),
        optimizer=dataclasses.replace(base.optimizer, lr=rate),
        wandb=dataclasses.replace(base.wandb, exp_name=name),
        experiment=dataclasses.replace(base.experiment, tag=tag),
        engine=dataclasses.replace(base.engine, block=block),
    )
    assert config_from_yaml(config_to_yaml(config)) == config


def test_stored_text_is_checked_too() -> None:
    assert config_from_yaml("model: {dense_ratio: 0.2}").model.dense_ratio == 0.2
    for text, key in (
        ("model: {dense_ratio: 7}", "model.dense_ratio"),
        ("modle: {name: cnn}", "modle.name"),
        ("- a", "config"),
        ("{", "config"),
        ("", "config"),
    ):
        with pytest.raises(ConfigError) as caught:
            config_from_yaml(text)
        assert caught.value.key == key
        assert "\n" not in str(caught.value)


def test_digest_tells_what_changes_the_numbers() -> None:
    digest = config_digest(load_config([]))
    assert len(digest) == 16
    for word in ("experiment.output_dir=x", "wandb.exp_name=y", "tracking.console=json", "engine.workers=2"):
        assert config_digest(load_config([word])) == digest
    for word in ("experiment.seed=1", "model.dense_ratio=0.1", "algorithm=fedavg", "engine.precision=bf16"):
        assert config_digest(load_config([word])) != digest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        dense = [load_config(["algorithm=fedavg", f"model.dense_ratio={density}"]) for density in (0.1, 0.9)]
    assert config_digest(dense[0]) == config_digest(dense[1])


def test_configuration_cannot_be_changed_afterwards() -> None:
    config = load_config([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.dense_ratio = 0.1  # type: ignore[misc]
    assert not OmegaConf.is_config(config.algorithm.params)


def test_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(["preset=digits"]).dataset.name == "digits"
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_aliases_blow_up_is_refused_at_once() -> None:
    """Nine levels of nine aliases each: 400 million values in 500 characters."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match="aliases"):
        config_from_yaml("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        config_from_yaml("model: &m {name: *m}")
    with pytest.raises(ConfigError, match="characters"):
        config_from_yaml("# " + "x" * 1_000_001)
    shared = "engine: &e {workers: 2}\nwandb: {exp_name: &n mine}\nexperiment: {tag: *n}"
    assert config_from_yaml(shared).experiment.tag == "mine"
