"""Lists and ranges on the command line become cells."""

from __future__ import annotations

import pytest

from ssfl.config import ConfigError, combinations


def test_product_of_two_lists() -> None:
    cells, notes = combinations(["preset=digits", "model.dense_ratio=0.5,0.1", "experiment.seed=range(1,4)"])
    made = [(cell.config.model.dense_ratio, cell.config.experiment.seed) for cell in cells]
    assert made == [(density, seed) for density in (0.5, 0.1) for seed in (1, 2, 3)]
    assert cells[0].label == "model.dense_ratio=0.5 experiment.seed=1"
    assert notes == []


def test_a_dense_method_runs_once_for_all_densities() -> None:
    cells, notes = combinations(["preset=digits", "algorithm=ssfl,fedavg", "model.dense_ratio=0.5,0.1"])
    labels = [cell.label for cell in cells]
    assert labels == [
        "algorithm=ssfl model.dense_ratio=0.5",
        "algorithm=ssfl model.dense_ratio=0.1",
        "algorithm=fedavg",
    ]
    assert len(notes) == 1
    assert "algorithm=fedavg model.dense_ratio=0.1" in notes[0]


def test_paths_of_methods_are_listed_as_they_were_written() -> None:
    cells, _ = combinations(["preset=digits", "algorithm.name=fedavg,examples.fedprox:METHOD"])
    assert [cell.label for cell in cells] == [
        "algorithm.name=fedavg",
        "algorithm.name=examples.fedprox:METHOD",
    ]
    assert cells[1].config.algorithm.name == "examples.fedprox:METHOD"
    paths, _ = combinations(["preset=digits", "experiment.tag='a:b','c: {d'", "experiment.seed=1,2"])
    assert {cell.config.experiment.tag for cell in paths} == {"a:b"}


def test_groups_and_quoted_values_sweep_too() -> None:
    cells, _ = combinations(["algorithm/mode=static,random_global", "dataset.data_dir='a,b'"])
    assert [cell.config.algorithm.params.mode for cell in cells] == ["static", "random_global"]
    assert {cell.config.dataset.data_dir for cell in cells} == {"a,b"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["preset=digits"], "nothing to sweep"),
        (["model.dense_ratio=0.5,7"], "model.dense_ratio=7"),
        (["algorithm=ssfl,nope"], "algorithm=nope"),
        (["just-a-word"], "KEY=VALUE"),
    ],
)
def test_impossible_sweeps_are_refused_before_anything_runs(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        combinations(words)
