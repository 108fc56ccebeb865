"""The page of results, what is kept of a sweep, the search for learning rates: from made-up runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssfl.report import RunError, load_run
from ssfl.report.collect import collect
from ssfl.report.results import write_results
from ssfl.report.results_plots import accuracy_against_sparsity, evaluated_teraflops, sparsity_points
from ssfl.report.sample import write_sample_run
from ssfl.report.table import paper_table
from ssfl.report.tune import main as tune
from ssfl.report.tune import rate

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


def test_what_is_kept_has_no_place_of_this_machine_and_gives_the_same_table(tmp_path: Path) -> None:
    sweep, kept = _sweep(tmp_path / "sweep"), tmp_path / "kept"
    for _ in range(2):  # a second time replaces the first
        assert collect(sweep, kept) == 4
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"sweep.json", "config.yaml", "metrics.jsonl", "environment.json"}
    assert [path for path in files if "/home/" in path.read_text()] == []
    assert paper_table([kept], "csv") == paper_table([sweep], "csv")


def test_nothing_of_somebody_elses_is_replaced(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="no copy of a sweep"):
        collect(sweep, mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match=r"no readable sweep\.json"):
        collect(mine, tmp_path / "other")


def _trial_accuracy(folder: Path, density: float, lr: float, value: float) -> None:
    for run in folder.glob(f"runs/d{density}_lr{lr}_s*/*"):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "client_accuracy_mean" in row:
                row["client_accuracy_mean"] = value
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_best_rate_is_chosen_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, file = _sweep(tmp_path / "sweep", (0.5,), (0.3, 0.1, 0.03)), tmp_path / "lr.json"
    for lr, accuracy in ((0.3, 0.2), (0.1, 0.4), (0.03, 0.3)):
        _trial_accuracy(sweep, 0.5, lr, accuracy)
    assert tune(["choose", str(sweep), str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["chosen"] == {"ssfl": 0.1}
    assert len(found["trials"]) == 6
    assert "/home/" not in file.read_text()
    assert rate(file, "ssfl", "0.9") == "0.1"
    assert rate(file, "dispfl", "0.9") == "0.9"
    assert "no tuned learning rate" in capsys.readouterr().err
    assert tune(["get", str(file), "ssfl", "0.9"]) == 0
    assert capsys.readouterr().out == "0.1\n"


def test_half_a_search_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, file = _sweep(tmp_path / "sweep", (0.5,), (0.3, 0.1)), tmp_path / "lr.json"
    (run,) = sweep.glob("runs/d0.5_lr0.1_s550/*")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))  # no run_finished
    assert tune(["choose", str(sweep), str(file)]) == 1
    assert "1 of 2" in capsys.readouterr().err
    assert not file.exists()


def test_the_page_has_numbers_where_there_are_some_and_commands_where_not(tmp_path: Path) -> None:
    experiments, docs = tmp_path / "experiments", tmp_path / "docs"
    for name in ("cifar10_dir03", "tinyimagenet", "of_my_own"):
        (experiments / name).mkdir(parents=True)
    collect(_sweep(tmp_path / "sweep"), experiments / "cifar10_dir03" / "results" / "small")
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
