"""Reading run folders: complete, partially written, damaged, unfinished."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssfl.report.runs import RunError, find_run_folders, load_run, load_runs
from ssfl.report.runs.compact import reduced_rows
from ssfl.report.runs.labels import method
from ssfl.report.runs.sample import write_sample_run
from ssfl.report.studies.flatness import late_accuracy
from ssfl.report.tables.breakdown import classes_table, sites_table
from ssfl.report.tables.comparison import comparison_table, seeds_table
from ssfl.report.tables.paper_table import paper_table
from ssfl.report.tables.summary import summary_text
from ssfl.tracking import JsonlWriter
from ssfl.tracking.console import ConsoleProgress
from ssfl.tracking.jsonl import is_event


def _exchange(kind: str, number: int, down: int, up: int, **more: Any) -> dict[str, Any]:
    event = {"event": kind, "phase": kind, "round": number, "downlink_bytes": down, "uplink_bytes": up}
    return event | {"train_flops": 10, "wall_seconds": 2.0} | more


ROWS: list[dict[str, Any]] = [
    {"event": "run_started", "algorithm": "ssfl", "rounds": 2, "cohort": 3, "dense_bytes": 100},
    _exchange("phase", 0, 500, 500, layer_density={"a": 0.25, "b": 0.0}),
    _exchange("round", 1, 50, 40),
    _exchange("round", 2, 50, 40, peer_bytes=20, global_accuracy=None, client_accuracy_mean=0.5),
    {"event": "run_finished", "rounds": 2, "wall_seconds": 9.0},
]


def _write(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


def test_totals_by_hand(tmp_path: Path) -> None:
    run = load_run(_write(tmp_path, ROWS))
    assert run.status == "finished"
    assert (run.total("downlink_bytes"), run.total("uplink_bytes")) == (600, 580)
    assert run.total_bytes == 600 + 580 + 20
    assert run.total("train_flops") == 30
    assert run.fedavg_bytes == 2 * 100 * 3 * 2  # both ways, a dense model, three clients, two rounds
    assert run.bytes_ratio == 1.0
    assert run.wall_seconds == 9.0
    assert run.layer_density == {"a": 0.25, "b": 0.0}
    assert run.last_evaluation()["client_accuracy_mean"] == 0.5


def test_an_unfinished_run_is_measured_against_the_rounds_it_did(tmp_path: Path) -> None:
    run = load_run(_write(tmp_path, ROWS[:3]))
    assert run.status == "unfinished, round 1 of 2"
    assert run.fedavg_bytes == 2 * 100 * 3 * 1
    assert run.wall_seconds == 4.0
    assert run.last_evaluation() == {}


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"event": "run_interrupted", "round": 1, "reason": "Ctrl-C"}]
    assert load_run(_write(tmp_path, rows)).status == "interrupted, round 1 of 2"
    rows += [{"event": "resumed", "round": 1}]
    assert load_run(_write(tmp_path, rows)).status == "unfinished, round 1 of 2"


def test_a_run_killed_at_once_has_no_rows(tmp_path: Path) -> None:
    run = load_run(_write(tmp_path, []))
    assert run.status == "not started"
    assert run.bytes_ratio is None


def test_a_run_without_events_is_named_with_its_mode(tmp_path: Path) -> None:
    folder = write_sample_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("mode: static", "mode: random_global"))
    assert method(load_run(folder)) == "ssfl (random_global)"


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = load_run(_write(tmp_path, ROWS[:3], tail='{"event": "round", "round": 2, "downl'))
    assert len(run.rows) == 3


def test_what_the_writer_writes_is_what_is_read(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    for row in ROWS:
        writer.record(row)
    writer.close()
    assert list(load_run(tmp_path).rows) == ROWS


def _readers(folder: Path) -> None:
    """Everything that reads rows without drawing."""
    run = load_run(folder)
    for read in (comparison_table, seeds_table, classes_table, sites_table):
        read([run])
    summary_text(run)
    reduced_rows(run.rows)
    paper_table([folder], "text", None)
    late_accuracy(run, "global_accuracy")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    ConsoleProgress("quiet", 2, io.StringIO(), [json.loads(line) for line in lines if is_event(line)])


@pytest.mark.parametrize("value", ["0.5", [1], {"a": "b"}, True, None, 1e400, -3])
def test_no_edited_field_breaks_a_reader(value: Any, tmp_path: Path) -> None:
    """Every field of every kind of row, as another value: all readers read it, or the line is named."""
    rows = [json.loads(line) for line in _rows_of_a_whole_run(tmp_path / "whole")]
    (tmp_path / "config.yaml").write_bytes((tmp_path / "whole" / "config.yaml").read_bytes())
    for number, row in enumerate(rows):
        for name in row:
            _write(tmp_path / "edited", [*rows[:number], row | {name: value}, *rows[number + 1 :]])
            with contextlib.suppress(RunError):
                _readers(tmp_path / "edited")


def _rows_of_a_whole_run(folder: Path) -> list[str]:
    """One row of each kind, with all the fields that a run writes."""
    write_sample_run(folder, rounds=2)
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken\n", "line 3: not JSON"),
        ('{"round": 1}\n', "line 3: not an event"),
        ("7\n", "line 3"),
        ('{"event": "round", "round": 1}\n', "line 3: phase must be text"),
        (json.dumps(ROWS[2] | {"round": "1"}) + "\n", "line 3: round must be a whole number"),
        (json.dumps(ROWS[2] | {"uplink_bytes": None}) + "\n", "line 3: uplink_bytes must be a number"),
        (json.dumps(ROWS[2] | {"global_accuracy": "0.5"}) + "\n", "line 3: global_accuracy must be a number"),
        (
            json.dumps(ROWS[2] | {"client_accuracy": [0.5, "x"]}) + "\n",
            "line 3: client_accuracy must be a list",
        ),
        (json.dumps(ROWS[2] | {"layer_density": [1]}) + "\n", "line 3: layer_density must be an object"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    _write(tmp_path, ROWS[:2], tail=line + '{"event": "round"}\n')
    with pytest.raises(RunError, match=reason) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="no run folder here"):
        load_runs([tmp_path])


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    _write(tmp_path, ROWS)
    (tmp_path / "config.yaml").write_text("model: {dense_ratio: 0.5\n")
    with pytest.raises(RunError, match=r"config\.yaml: cannot be read as YAML") as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """YAML shares repeated aliases, so reading is fast, but visiting all values would take minutes."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'b{i}: *a{n - 1}' for i in range(9))}}}" for n in range(1, 10)]
    _write(tmp_path, ROWS)
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"config\.yaml: cannot be read as YAML .*aliases"):
        load_run(tmp_path)


def test_runs_are_found_below_each_once_and_not_in_hidden_folders(tmp_path: Path) -> None:
    for place in ("sweep/runs/b/1", "sweep/runs/a/2", "sweep/runs/a/1", "sweep/.new-x"):
        _write(tmp_path / place, ROWS)
    top = tmp_path / "sweep"
    found = find_run_folders([top / "runs" / "b" / "1", top, top / "runs"])
    assert [str(path.relative_to(top)) for path in found] == ["runs/b/1", "runs/a/1", "runs/a/2"]


def test_settings_by_dotted_key(tmp_path: Path) -> None:
    run = load_run(write_sample_run(tmp_path / "run", density=0.2, rounds=2))
    assert run.setting("model.dense_ratio") == 0.2
    assert run.setting("model.nothing", "default") == "default"
    assert run.setting("model.dense_ratio.deeper") is None


def test_reports_need_no_torch() -> None:
    modules = "ssfl.report.runs.sample, ssfl.report.figures.run_figures"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
