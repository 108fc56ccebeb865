"""A setting and a seed count once, in reports and in tables; both name the excluded runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ssfl.report.runs import load_run
from ssfl.report.runs.copies import one_a_seed
from ssfl.report.runs.sample import write_sample_run
from ssfl.report.runs.settings import settings
from ssfl.report.studies.flatness import setting_flatness
from ssfl.report.tables.comparison import seeds_table
from ssfl.report.tables.paper_table import paper_table
from ssfl.report.write import write_report


def loose(root: Path) -> dict[str, Path]:
    """Four runs of two seeds, one of them unfinished, and another setting."""
    return {
        "first": write_sample_run(root / "a", seed=1),
        "copy": write_sample_run(root / "b", seed=1),
        "stopped": write_sample_run(root / "c", seed=2, stop_after=20),
        "ended": write_sample_run(root / "d", seed=2),
        "other": write_sample_run(root / "e", density=0.1, seed=1),
    }


def test_the_finished_one_counts_else_the_first(tmp_path: Path) -> None:
    runs = loose(tmp_path)
    counted = one_a_seed([load_run(folder) for folder in runs.values()])
    assert [run.folder for run in counted.runs] == [runs["first"], runs["ended"], runs["other"]]
    assert [run.folder for run in counted.copies] == [runs["copy"], runs["stopped"]]


def test_a_report_averages_two_seeds_and_names_the_copies(tmp_path: Path) -> None:
    runs = loose(tmp_path / "runs")
    alone = seeds_table([load_run(runs["first"]), load_run(runs["ended"]), load_run(runs["other"])])
    text = write_report([tmp_path / "runs"], tmp_path / "report").text
    assert alone in text
    assert "2 runs are excluded: the same setting and seed is already counted" in text
    assert str(runs["copy"]) in text
    kept = (tmp_path / "report" / "comparison.md").read_text()
    assert "2 runs are excluded" in kept


def sweep_of(folder: Path, seeds: Sequence[int], rounds: int = 50) -> Path:
    cells = []
    for seed in seeds:
        words = ["algorithm=ssfl", f"experiment.seed={seed}"]
        cells.append({"name": f"seed{seed}", "label": " ".join(words), "overrides": words, "rounds": rounds})
        write_sample_run(folder / "runs" / f"seed{seed}" / "20300101-000000", seed=seed, rounds=rounds)
    (folder / "sweep.json").write_text(json.dumps({"words": [], "cells": cells}))
    return folder


def test_sweeps_of_one_setting_are_one_row(tmp_path: Path) -> None:
    """A sweep, one with another seed and a copied one, and a single run of a fourth seed."""
    found = [sweep_of(tmp_path / "first", (1, 2)), sweep_of(tmp_path / "second", (2, 3))]
    found.append(write_sample_run(tmp_path / "alone", seed=4))
    (setting,) = settings(found)
    assert sorted(run.started["seed"] for run in setting.runs) == [1, 2, 3, 4]
    assert setting.seeds == "4 of 4"
    assert setting.copies == (tmp_path / "second" / "runs" / "seed2" / "20300101-000000",)
    assert setting.command.endswith("experiment.seed=1,2,3,4")


def test_the_command_of_a_row_names_a_default_seed_too(tmp_path: Path) -> None:
    """One sweep without a word for the seed, one with another seed."""
    first = sweep_of(tmp_path / "first", (0,))
    stored = json.loads((first / "sweep.json").read_text())
    stored["cells"][0]["overrides"] = ["algorithm=ssfl"]
    (first / "sweep.json").write_text(json.dumps(stored))
    (setting,) = settings([first, sweep_of(tmp_path / "second", (1,))])
    assert setting.seeds == "2 of 2"
    assert sorted(setting.command.rpartition("experiment.seed=")[2].split(",")) == ["0", "1"]


def test_seeds_of_different_length_are_said(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, (1, 2))
    write_sample_run(folder / "runs" / "seed2" / "20300102-000000", seed=2, rounds=100)
    (setting,) = settings([folder])
    assert setting.label.endswith(", seeds of 50 and 100 rounds")
    assert setting_flatness(setting, "global_accuracy") is None


def test_tables_count_alike_whether_runs_are_loose_or_of_a_sweep(tmp_path: Path) -> None:
    """Two sweeps in one folder at the same time made two runs of every cell."""
    sweep = tmp_path / "sweep"
    cells = []
    for seed in (1, 2):
        words = ["algorithm=ssfl", f"experiment.seed={seed}"]
        cells.append({"name": f"seed{seed}", "label": " ".join(words), "overrides": words, "rounds": 50})
        for time in ("20300101-000000", "20300101-000000-2"):
            write_sample_run(sweep / "runs" / f"seed{seed}" / time, seed=seed)
    (sweep / "sweep.json").write_text(json.dumps({"words": [], "cells": cells}))
    (of_sweep,) = settings([sweep])
    (of_runs,) = settings([sweep / "runs"])
    for found in (of_sweep, of_runs):
        assert (found.asked, len(found.finished), len(found.copies)) == (2, 2, 2)
    texts = [paper_table([folder], "text", "none") for folder in (sweep, sweep / "runs")]
    for text in texts:
        assert "2 runs are excluded" in " ".join(text.split())
