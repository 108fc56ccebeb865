"""The page of results, from invented runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssfl.report.figures.result_figures import accuracy_against_sparsity, evaluated_teraflops, sparsity_points
from ssfl.report.pages import write_results
from ssfl.report.runs import RunError, load_run
from ssfl.report.runs.collect import collect
from ssfl.report.runs.sample import write_sample_run

SEEDS = (550, 110)


def _sweep(
    folder: Path, densities: Sequence[float] = (0.5, 0.1), rates: Sequence[float] = (0.1,), rounds: int = 4
) -> Path:
    cells: list[dict[str, Any]] = []
    for density in densities:
        for lr in rates:
            for seed in SEEDS:
                name = f"d{density}_lr{lr}_s{seed}"
                words = ["dataset.data_dir=/home/me/data", f"model.dense_ratio={density}"]
                words += [f"optimizer.lr={lr}", f"experiment.seed={seed}"]
                cells.append({"name": name, "label": name, "overrides": words, "rounds": rounds})
                place = folder / "runs" / name / "20300101-000000"
                write_sample_run(place, density=density, seed=seed, rounds=rounds)
                config = (place / "config.yaml").read_text()
                config += f"optimizer: {{lr: {lr}}}\ndataset:\n  data_dir: /home/me/data\n"
                (place / "config.yaml").write_text(config)
                command = ["/home/me/bin/ssfl", "run", *words, "experiment.output_dir='/home/me/out'"]
                (place / "environment.json").write_text(json.dumps({"command": command}))
                (place / "model.safetensors").write_bytes(b"weights")
    plan = {
        "words": ["dataset.data_dir=/home/me/data", "model.dense_ratio=0.5 optimizer.lr=0.1"],
        "cells": cells,
    }
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder


def test_the_page_has_numbers_where_there_are_some_and_commands_where_not(tmp_path: Path) -> None:
    experiments, docs = tmp_path / "experiments", tmp_path / "docs"
    for name in ("cifar10_dir03", "tinyimagenet", "of_my_own"):
        (experiments / name).mkdir(parents=True)
    collect([_sweep(tmp_path / "sweep")], experiments / "cifar10_dir03" / "results" / "small" / "runs.json")
    for name, stage in (("cifar10_dir03", "small"), ("cifar10_dir03", "paper"), ("tinyimagenet", "small")):
        (experiments / name / f"run_{stage}.sh").write_text("")
    (experiments / "tinyimagenet" / "run_paper.sh").write_text("")
    page = write_results(experiments, docs).read_text()
    (experiments / ".hidden").mkdir()
    ours, own, tiny = page.split("\n## ")[1:]
    assert ours.startswith("CIFAR-10, ResNet18, Dirichlet 0.3")
    assert "2 of 2" in ours
    assert "Not run yet: `bash experiments/cifar10_dir03/run_paper.sh`" in ours
    assert "not tuned yet" in ours
    assert own.startswith("of_my_own\n")
    assert tiny.count("Not run yet") == 2
    assert "%" not in tiny.replace("50 % sparsity", "")
    pictures = sorted(path.name for path in (docs / "images" / "results").iterdir())
    kinds = ("bytes", "clients", "flops", "rounds", "sparsity")
    assert pictures == [f"cifar10_dir03_small_{kind}.png" for kind in kinds]
    assert all(f"images/results/{name}" in ours for name in pictures)
    results = experiments / "cifar10_dir03" / "results" / "small" / "runs.json"
    whole = results.read_text()
    results.write_text("{")
    with pytest.raises(RunError):
        write_results(experiments, docs)
    assert len(list((docs / "images" / "results").iterdir())) == len(kinds)  # damaged data removes no figure
    results.write_text(whole)
    (docs / "images" / "results" / "deleted_small_bytes.png").touch()
    write_results(experiments, docs)
    assert sorted(path.name for path in (docs / "images" / "results").iterdir()) == pictures


def test_no_experiments_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no experiment here"):
        write_results(tmp_path, tmp_path / "docs")


def test_teraflops_are_sums_until_each_evaluation(tmp_path: Path) -> None:
    run = load_run(write_sample_run(tmp_path / "run", rounds=6))
    total, expected = 0.0, []
    for row in run.rows:
        total += row.get("train_flops", 0.0) / 1e12
        if row.get("global_accuracy") is not None and row["event"] in ("phase", "round"):
            expected.append(total)
    assert evaluated_teraflops(run) == pytest.approx(expected)


def test_points_over_sparsity_are_means_of_finished_runs(tmp_path: Path) -> None:
    runs = [
        load_run(write_sample_run(tmp_path / f"{density}-{seed}", density=density, seed=seed, rounds=5))
        for density in (0.5, 0.05)
        for seed in SEEDS
    ]
    open_one = load_run(write_sample_run(tmp_path / "open", density=0.2, rounds=5, stop_after=2))
    points = sparsity_points([*runs, open_one], "global_accuracy")
    assert [point[0] for point in points] == [0.5, 0.95]
    dense = [run.last_evaluation()["global_accuracy"] for run in runs[:2]]
    assert points[0][1:] == pytest.approx((statistics.mean(dense), statistics.stdev(dense)))
    figure = accuracy_against_sparsity(runs)
    assert all(len(axes.containers) == 1 for axes in figure.axes)
