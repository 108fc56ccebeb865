"""One file for an experiment's results: the same tables as from its run folders, without paths of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssfl.report.figures.run_figures import evaluated_megabytes
from ssfl.report.runs import RunError, load_run
from ssfl.report.runs.collect import _scrubbed, collect
from ssfl.report.runs.collect import main as collect_main
from ssfl.report.runs.compact import all_runs, load_compact, reduced_rows
from ssfl.report.runs.run import flat, nested
from ssfl.report.runs.settings import settings
from ssfl.report.tables.comparison import comparison_table
from ssfl.report.tables.paper_table import paper_table
from tests.support.packed_runs import CODE, evaluation, exchange, write_run, write_sweep

CURVE = (0.3, 0.4, 0.45, 0.461234567)
"""The last number has more digits than are kept; tables show at most the first six."""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two settings of two seeds, one cell not started."""
    runs = [("ssfl", 1, CURVE), ("ssfl", 2, CURVE[:3]), ("fedavg_ft", 1, CURVE), ("fedavg_ft", 2, ())]
    return write_sweep(tmp_path / "sweep", runs)


def test_the_same_tables_as_from_run_folders(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "kept" / "runs.json"
    assert collect([sweep], packed) == 3
    for style in ("text", "markdown"):
        assert paper_table([packed], style) == paper_table([sweep], style)  # type: ignore[arg-type]
    assert paper_table([packed.parent]) == paper_table([packed])
    tables = [comparison_table(all_runs([place]), "markdown").splitlines() for place in (packed, sweep)]
    assert sorted(tables[0]) == sorted(tables[1])


def test_curves_over_bytes_are_those_of_the_run_folders(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.json"
    collect([sweep], packed)
    for cell in load_compact(packed):
        if cell.run is None:
            continue
        (folder,) = (sweep / "runs" / cell.name).iterdir()
        whole = load_run(folder)
        assert evaluated_megabytes(cell.run) == pytest.approx(evaluated_megabytes(whole))
        for name in ("downlink_bytes", "uplink_bytes", "train_flops", "wall_seconds"):
            assert cell.run.total(name) == pytest.approx(whole.total(name))
        assert cell.run.layer_density == whole.layer_density
        assert (cell.run.rounds_done, cell.run.status) == (whole.rounds_done, whole.status)
        assert cell.run.last_evaluation()["client_accuracy"] == pytest.approx(
            whole.last_evaluation()["client_accuracy"]
        )
        assert cell.run.code == whole.code == CODE["sources"]


def test_no_place_of_this_machine_is_kept(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.json"
    collect([sweep], packed)
    text = packed.read_text()
    assert "/home/" not in text
    assert "$SSFL_DATA_DIR" in text
    assert 3 * sum(p.stat().st_size for p in packed.parent.glob("runs.json")) < 3 * sum(
        p.stat().st_size for p in sweep.rglob("*") if p.is_file()
    )


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("dataset.data_dir=/a/b", "dataset.data_dir=$SSFL_DATA_DIR"),
        ("dataset.data_dir='/a/my data'", "dataset.data_dir=$SSFL_DATA_DIR"),
        (
            'algorithm=ssfl experiment.output_dir="/a/my runs" optimizer.lr=0.1',
            "algorithm=ssfl experiment.output_dir=outputs optimizer.lr=0.1",
        ),
        ("wandb.exp_name=dataset.data_dir", "wandb.exp_name=dataset.data_dir"),
    ],
)
def test_paths_with_spaces_are_replaced_whole(word: str, kept: str) -> None:
    assert _scrubbed(word) == kept


def test_collecting_again_and_together_keeps_the_farthest(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.json"
    assert collect([sweep], packed) == 3
    later = write_sweep(tmp_path / "later", [("fedavg_ft", 2, CURVE)])
    assert collect([packed, later], packed) == 4
    assert collect([packed, sweep], packed) == 4  # the cell without a run in `sweep` is kept
    assert [len(s.finished) for s in settings([packed])] == [2, 2]


def test_fedavg_is_what_fedavg_ft_was_before_its_fine_tuning(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.json"
    assert collect_main(["--with-fedavg", str(sweep), str(packed)]) == 0
    found = {s.label.partition(", seeds of")[0]: s for s in settings([packed])}
    assert set(found) == {"SSFL, density 0.5", "FedAvg-FT", "FedAvg"}
    (fedavg,), (tuned,) = found["FedAvg"].finished, found["FedAvg-FT"].finished
    assert fedavg.last_evaluation()["client_accuracy_mean"] == pytest.approx(CURVE[-1] + 0.1, abs=1e-6)
    assert tuned.last_evaluation()["client_accuracy_mean"] == 0.9
    assert fedavg.total_bytes == tuned.total_bytes - 2 * 7000 == 8 * 2000
    assert fedavg.finished is not None
    assert fedavg.finished["client_accuracy_mean"] == pytest.approx(CURVE[-1] + 0.1, abs=1e-6)
    assert "algorithm=fedavg " in found["FedAvg"].command + " "


def test_fine_tuning_at_an_earlier_end_is_not_counted(tmp_path: Path) -> None:
    """Earlier versions kept it in a run that was extended afterwards."""
    sweep = write_sweep(tmp_path / "sweep", [("fedavg_ft", 1, CURVE)])
    (metrics,) = sweep.rglob("metrics.jsonl")
    lines = metrics.read_text().splitlines()
    early = json.loads(lines[-2]) | {"round": 4}
    assert early["phase"] == "fine_tune"
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"total_downlink_bytes": 22_000, "bytes_ratio": 0.5})
    lines.insert(5, json.dumps(early))  # after the row of round 4
    collect([sweep], tmp_path / "once.json")
    metrics.write_text("\n".join(lines) + "\n")
    collect([sweep], tmp_path / "twice.json")
    (once,), (twice,) = (
        [c.run for c in load_compact(tmp_path / f"{n}.json") if c.run] for n in ("once", "twice")
    )
    assert twice.total_bytes == once.total_bytes == 8 * 2000 + 2 * 7000
    assert twice.total("train_flops") == once.total("train_flops")
    assert twice.finished == once.finished


def test_one_name_for_two_settings_is_refused(sweep: Path, tmp_path: Path) -> None:
    other = write_sweep(tmp_path / "other", [("ssfl", 1, CURVE)])
    stored = (other / "sweep.json").read_text()
    (other / "sweep.json").write_text(
        stored.replace('"algorithm=ssfl"', '"algorithm=ssfl", "optimizer.momentum=0.9"')
    )
    with pytest.raises(RunError, match=r"ssfl_s1 stands for two settings: .* optimizer\.momentum=0\.9"):
        collect([sweep, other], tmp_path / "runs.json")


def test_collecting_again_keeps_up_with_fedavg_too(sweep: Path, tmp_path: Path) -> None:
    packed = tmp_path / "runs.json"
    assert collect([sweep], packed, with_fedavg=True) == 4  # SSFL twice, FedAvg-FT and FedAvg once
    later = write_sweep(tmp_path / "later", [("fedavg_ft", 2, CURVE)])
    assert collect([packed, later], packed, with_fedavg=True) == 6
    assert {s.label: len(s.finished) for s in settings([packed])}["FedAvg"] == 2
    before = packed.read_bytes()
    collect([packed], packed, with_fedavg=True)
    assert packed.read_bytes() == before


def test_costs_of_rounds_between_evaluations_are_added_up() -> None:
    rows = [exchange("round", "train", n, 100 * n) for n in (1, 2, 3)]
    rows[1] |= evaluation(0.5)
    kept = reduced_rows([{"event": "run_started"}, *rows])
    assert [(r.get("round"), r.get("downlink_bytes")) for r in kept] == [(None, None), (2, 300), (3, 300)]
    assert kept[1]["wall_seconds"] == 1
    assert "global_class_accuracy" not in kept[1]


def test_a_mask_of_a_round_between_evaluations_is_in_the_next_kept_row() -> None:
    """A method with a new mask in every round would otherwise keep every round."""
    rows = [exchange("round", "train", n, 100) | {"layer_density": {"a": n / 10}} for n in (1, 2, 3, 4)]
    del rows[3]["layer_density"]
    rows[3] |= evaluation(0.5)
    kept = reduced_rows([{"event": "run_started"}, *rows])
    assert [(r.get("round"), r.get("layer_density")) for r in kept] == [(None, None), (4, {"a": 0.3})]


def test_a_file_that_is_none_is_neither_read_nor_replaced(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis.json"
    for text in ("", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "cells": [{}]}'):
        other.write_text(text)
        with pytest.raises(RunError, match=r"thesis\.json: "):
            collect([sweep], other)
        assert other.read_text() == text
    with pytest.raises(RunError, match=r"no readable sweep\.json"):
        collect([tmp_path / "nowhere"], tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("config", [{}, {"a": 1}, {"a": {"b": {"c": [1, 2]}, "d": None}, "e": "x"}])
def test_dotted_keys_and_back(config: dict[str, Any]) -> None:
    assert nested(flat(config)) == config


def test_runs_of_other_code_are_another_setting_and_said(tmp_path: Path) -> None:
    for seed, sources in ((1, "aaaa"), (2, "aaaa"), (3, "bbbb")):
        write_run(tmp_path / f"r{seed}", "ssfl", seed, CURVE, code={**CODE, "sources": sources})
    found = settings([tmp_path])
    assert [(s.label, len(s.runs)) for s in found] == [
        ("SSFL, density 0.5, code=aaaa", 2),
        ("SSFL, density 0.5, code=bbbb", 1),
    ]
    assert "made by 2 versions of the code (aaaa, bbbb)" in paper_table([tmp_path])


def test_a_row_of_a_sweep_whose_seeds_were_made_by_several_versions_names_them(tmp_path: Path) -> None:
    """A study that continues after an update keeps its pairs of seeds, but not silently."""
    sweep = write_sweep(
        tmp_path / "sweep", [(name, s, CURVE) for name in ("ssfl", "fedavg_ft") for s in (1, 2)]
    )
    (environment,) = (sweep / "runs" / "ssfl_s2").glob("*/environment.json")
    stored = json.loads(environment.read_text())
    environment.write_text(json.dumps(stored | {"code": {**CODE, "sources": "bbbb"}}))
    packed = tmp_path / "runs.json"
    collect([sweep], packed)
    for place in (sweep, packed):
        ssfl, fedavg_ft = settings([place])
        assert (ssfl.label, ssfl.seeds) == (f"SSFL, density 0.5, code={CODE['sources']} and bbbb", "2 of 2")
        assert ssfl.codes == (CODE["sources"], "bbbb")
        assert fedavg_ft.label == f"FedAvg-FT, code={CODE['sources']}"
        assert "A row that averages several versions names them" in paper_table([place])


def test_a_run_resumed_by_other_code_is_of_neither_version(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "ssfl", 1, CURVE)
    with (folder / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"event": "resumed", "round": 2, "code": {**CODE, "sources": "other"}}) + "\n")
    assert load_run(folder).code == f"{CODE['sources']}+other"
