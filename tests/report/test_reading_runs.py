"""Run folders read back: whole, half written, damaged, unfinished."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssfl.report import RunError, find_run_folders, load_run, load_runs
from ssfl.report.sample import write_sample_run
from ssfl.tracking import JsonlWriter


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


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = load_run(_write(tmp_path, ROWS[:3], tail='{"event": "round", "round": 2, "downl'))
    assert len(run.rows) == 3


def test_what_the_writer_writes_is_what_is_read(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    for row in ROWS:
        writer.record(row)
    writer.close()
    assert list(load_run(tmp_path).rows) == ROWS


@pytest.mark.parametrize(
    ("line", "said"),
    [("{broken\n", "line 3: no JSON"), ('{"round": 1}\n', "line 3: no event"), ("7\n", "line 3")],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    _write(tmp_path, ROWS[:2], tail=line + '{"event": "round"}\n')
    with pytest.raises(RunError, match=said) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="no run here or below"):
        load_runs([tmp_path])


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    _write(tmp_path, ROWS)
    (tmp_path / "config.yaml").write_text("model: {dense_ratio: 0.5\n")
    with pytest.raises(RunError, match=r"config\.yaml: cannot be read as YAML") as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


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
    code = "import sys, ssfl.report, ssfl.report.plots, ssfl.report.sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
