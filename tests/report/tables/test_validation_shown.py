"""Accuracy on held-out rows in summary, comparison and table: shown if rows were held out, absent otherwise."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from ssfl.report.runs import load_run
from ssfl.report.tables.comparison import comparison_table, seeds_table
from ssfl.report.tables.paper_table import Format, paper_table
from ssfl.report.tables.summary import summary_text
from tests.support.packed_runs import write_run

GLOBAL, OWN, SPREAD = (
    "global_validation_accuracy",
    "client_validation_accuracy_mean",
    "client_validation_accuracy_std",
)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Two seeds with held-out rows: 0.31 and 0.33 globally, 0.61 and 0.65 for the clients."""
    for seed, accuracy, own in ((1, 0.31, 0.61), (2, 0.33, 0.65)):
        folder = write_run(tmp_path / "held" / str(seed), "ssfl", seed, (0.2, 0.4))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "global_class_accuracy" in row:
                row |= {GLOBAL: accuracy, OWN: own, SPREAD: 0.1}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "held"


@pytest.fixture
def nothing_held_out(tmp_path: Path) -> Path:
    """One run without."""
    return write_run(tmp_path / "whole" / "1", "ssfl", 1, (0.2, 0.4)).parent


def test_the_summary_says_both(held_out: Path, nothing_held_out: Path) -> None:
    text = summary_text(load_run(held_out / "1"))
    assert "validation       31.00 %            (global model, all held-out training rows)" in text
    assert "61.00 ± 10.00 %    (own models, own held-out training rows)" in text
    assert "held-out" not in summary_text(load_run(nothing_held_out / "1"))


def test_the_comparison_has_columns_for_it(held_out: Path, nothing_held_out: Path) -> None:
    runs = [load_run(held_out / "1"), load_run(nothing_held_out / "1")]
    head, _, with_rows, without = comparison_table(runs, "markdown").splitlines()
    assert "| clients % | validation: global % | clients % | kB down |" in head
    assert "| 31.00 | 61.00 ± 10.00 |" in with_rows
    assert "| 50.00 ± 5.00 |  |  |" in without
    assert "validation" not in comparison_table(runs[1:], "markdown")
    first, second = csv.DictReader(io.StringIO(comparison_table(runs, "csv")))
    assert (first[GLOBAL], first[OWN], first[SPREAD]) == ("0.31", "0.61", "0.1")
    assert (second[GLOBAL], second[OWN]) == ("", "")


def test_the_means_over_seeds_of_a_report_have_it_too(held_out: Path, nothing_held_out: Path) -> None:
    runs = [load_run(held_out / number) for number in ("1", "2")]
    head, _, line = seeds_table(runs, "markdown").splitlines()
    assert "| validation: global %, mean ± std | clients %, mean ± std |" in head
    assert "| 32.00 ± 1.41 | 63.00 ± 2.83 |" in line
    second = write_run(nothing_held_out / "2", "ssfl", 2, (0.2, 0.4))
    whole = [load_run(folder) for folder in (nothing_held_out / "1", second)]
    assert "validation" not in seeds_table(whole, "markdown")


@pytest.mark.parametrize("style", ["text", "markdown", "latex"])
def test_the_table_has_means_over_seeds(style: Format, held_out: Path, nothing_held_out: Path) -> None:
    table = paper_table([held_out], style)
    spread = (
        (r"32.00 $\pm$ 1.41", r"63.00 $\pm$ 2.83") if style == "latex" else ("32.00 ± 1.41", "63.00 ± 2.83")
    )
    assert all(text in table for text in spread)
    assert "validation" not in paper_table([nothing_held_out], style)


def test_the_csv_always_has_its_columns(held_out: Path) -> None:
    (line,) = csv.DictReader(io.StringIO(paper_table([held_out], "csv")))
    assert float(line["validation_mean"]) == pytest.approx(32)
    assert float(line["clients_validation_mean"]) == pytest.approx(63)
