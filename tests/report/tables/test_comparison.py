"""Labels, comparison tables, the final summary: compared with numbers computed by hand."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssfl.report.runs import Run, load_run
from ssfl.report.runs.labels import density, labels, method
from ssfl.report.runs.sample import write_sample_run
from ssfl.report.tables.comparison import comparison_table, seeds_table
from ssfl.report.tables.summary import summary_text
from ssfl.report.write import write_report


def _run(
    folder: str = "run",
    config: dict[str, Any] | None = None,
    finished: bool = True,
    unread: Sequence[str] = (),
    **evaluation: Any,
) -> Run:
    """Two rounds of three clients that cost 1.5 MB down and 0.5 MB up each; a dense model is 1 MB."""
    started: dict[str, Any] = {
        "event": "run_started",
        "algorithm": "ssfl",
        "method": "SSFL",
        "unread_keys": unread,
        "rounds": 2,
        "cohort": 3,
    }
    started |= {"dense_bytes": 1_000_000, "density": 0.5, "seed": 7}
    cost = {"downlink_bytes": 1_500_000, "uplink_bytes": 500_000, "train_flops": 2e12, "wall_seconds": 30.0}
    rounds: list[dict[str, Any]] = [
        {"event": "round", "phase": "train", "round": number, **cost} for number in (1, 2)
    ]
    rounds[-1] |= {
        "global_accuracy": 0.9,
        "client_accuracy_mean": 0.8,
        "client_accuracy_std": 0.125,
    } | evaluation
    rows: list[dict[str, Any]] = [started, *rounds] + (
        [{"event": "run_finished", "wall_seconds": 100.0}] if finished else []
    )
    return Run(Path(folder), config or {}, tuple(rows))


def test_markdown_by_hand() -> None:
    head, rule, line = comparison_table([_run()], "markdown").splitlines()
    assert rule.count("--") == head.count("|") - 1
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # 2 rounds x 3 clients x 1 MB x both ways = 12 MB dense, over 4 MB.
    assert cells == [
        "SSFL",
        "0.5",
        "7",
        "finished",
        "90.00",
        "80.00 ± 12.50",
        "3.00",
        "1.00",
        "3.00",
        "4",
        "100",
    ]


def test_csv_has_plain_numbers_in_base_units() -> None:
    (row,) = csv.DictReader(io.StringIO(comparison_table([_run(finished=False)], "csv")))
    assert row["status"] == "unfinished, round 2 of 2"
    assert row["global_accuracy"] == "0.9"
    assert row["downlink_bytes"] == "3000000"
    assert row["bytes_ratio"] == "3.0"
    assert row["wall_seconds"] == "60.0"  # of its exchanges, because it did not finish


def test_the_text_table_has_a_line_a_run_and_no_wrapping_when_wide() -> None:
    text = comparison_table([_run(), _run(global_accuracy=None)], width=200)
    lines = text.splitlines()
    assert len(lines) == 4  # head, rule, two runs
    assert "FedAvg bytes / these" in lines[0]
    assert "90.00" in lines[2]
    assert "90.00" not in lines[3]


def test_peer_bytes_get_a_column_when_there_are_any() -> None:
    assert "MB peer" not in comparison_table([_run()], "markdown")
    table = comparison_table([_run(), _run(peer_bytes=2_500_000)], "markdown")
    assert "| MB peer |" in table
    assert "| 2.50 |" in table


def test_bars_in_a_label_do_not_break_markdown() -> None:
    runs = [_run(config={"model": {"name": "a|b"}}), _run(config={"model": {"name": "c"}})]
    assert "name=a\\|b" in comparison_table(runs, "markdown")


def test_seeds_are_averaged_over_finished_runs_only(tmp_path: Path) -> None:
    accuracies = (0.80, 0.84, 0.85)
    runs = [_run(global_accuracy=value) for value in accuracies] + [_run(global_accuracy=0.1, finished=False)]
    line = seeds_table(runs, "markdown").splitlines()[2]
    mean, std = 100 * statistics.mean(accuracies), 100 * statistics.stdev(accuracies)
    assert line.startswith(f"| SSFL, density 0.5 | 3 | 1 | {mean:.2f} ± {std:.2f} |")


def test_one_finished_run_has_no_average() -> None:
    assert seeds_table([_run(), _run(finished=False)]) == ""


def test_a_dense_method_has_density_one_whatever_the_key_says() -> None:
    assert density(_run(unread=["model.dense_ratio"])) == 1.0
    assert density(_run()) == 0.5


def test_methods_have_the_names_that_they_gave_themselves() -> None:
    config = {"algorithm": {"name": "mine"}}
    started = {"event": "run_started", "algorithm": "mine", "method": "My method"}
    assert method(Run(Path("run"), config, (started,))) == "My method"
    assert method(Run(Path("run"), config, ())) == "mine"  # no event was recorded
    assert method(Run(Path("run"), {}, ())) == "unknown method"


def test_labels_name_what_differs_and_what_the_method_reads() -> None:
    configs = [
        {"optimizer": {"lr": 0.1}, "experiment": {"seed": 1}, "training": {"epochs": 5}},
        {"optimizer": {"lr": 0.2}, "experiment": {"seed": 2}, "training": {"epochs": 5}},
        {"optimizer": {"lr": 0.3}, "training": {"epochs": 5}},
    ]
    unread = ((), (), ("optimizer.*",))
    named = labels([_run(config=config, unread=keys) for config, keys in zip(configs, unread, strict=True)])
    assert named == ["SSFL, density 0.5, lr=0.1", "SSFL, density 0.5, lr=0.2", "SSFL, density 0.5"]


def test_another_precision_is_another_setting_and_another_executor_is_not() -> None:
    engines = ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp32", "executor": "threads"})
    named = labels([_run(config={"engine": engine}) for engine in engines])
    assert named == [
        "SSFL, density 0.5, precision=fp32",
        "SSFL, density 0.5, precision=bf16",
        "SSFL, density 0.5, precision=fp32",
    ]


def test_the_summary_holds_both_accuracies_bytes_ratio_and_places() -> None:
    text = summary_text(_run("outputs/x", client_accuracy=[0.7, None, 0.9]))
    assert text.splitlines()[0] == "SSFL, density 0.5, seed 7: finished, 2 rounds in 100.0 s"
    for part in (
        "90.00 %",
        "80.00 ± 12.50 %",
        "over 2 clients",  # the third has no test examples
        "3.00 MB",
        "1.00 MB",
        "dense FedAvg 6.00 MB",
        "dense FedAvg 12.00 MB; FedAvg / this run = 3.00",
        "4 TFLOPs",
        "outputs/x",
    ):
        assert part in text


def test_the_summary_of_a_run_without_global_model_or_evaluation() -> None:
    text = summary_text(_run(global_accuracy=None, peer_bytes=2_500_000))
    assert "global accuracy" not in text
    assert "between clients  2.50 MB" in text
    never = summary_text(_run(global_accuracy=None, client_accuracy_mean=None))
    assert "never evaluated" in never


def test_the_summary_lists_the_plots_that_are_there(tmp_path: Path) -> None:
    folder = write_sample_run(tmp_path / "run", rounds=3)
    assert ".png" not in summary_text(load_run(folder))
    write_report([folder], folder / "report")
    assert str(folder / "report" / "accuracy_rounds.png") in summary_text(load_run(folder))


def test_totals_of_the_end_agree_with_the_sums_of_the_rows(tmp_path: Path) -> None:
    run = load_run(write_sample_run(tmp_path / "run", rounds=4))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["total_downlink_bytes"] == run.total("downlink_bytes")
    assert rows[-1]["bytes_ratio"] == pytest.approx(run.bytes_ratio)
