"""A setting and a seed count once, in reports and in tables; both name the excluded runs."""

from __future__ import annotations

import json
from pathlib import Path

from ssfl.report.runs import load_run
from ssfl.report.runs.copies import one_a_seed
from ssfl.report.runs.sample import write_sample_run
from ssfl.report.runs.settings import settings
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
