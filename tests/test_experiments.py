"""Scripts of experiments: all cells are possible, methods and seeds are complete, estimated times are right."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ssfl.config import Config, cohort_size, load_config
from ssfl.report.paper.published import TABLES
from ssfl.report.runs.compact import all_runs, load_compact
from ssfl.report.runs.labels import density as density_of
from ssfl.report.runs.labels import method as label_of
from ssfl.report.runs.run import Run
from ssfl.report.studies.definition import Selector, read_study
from ssfl.report.studies.study import insert_tables, write_study

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """#!/usr/bin/env bash
# Replaces `ssfl` and `python -m ssfl.report...`: stores the sweep file and the arguments, answers 0.1 to `rate`.
[ "$1" = -m ] && [ "$2" = ssfl.report.studies.choice ] && { echo 0.1; exit; }
[ "$1" = sweep ] || exit 0
shift
while [ $# -gt 0 ]; do
  case $1 in
    --lines) cat "$2" >>"$KEEP/lines"; shift 2;;
    --*) shift 2;;
    *) echo "$1" >>"$KEEP/words"; shift;;
  esac
done
"""
SECONDS_PER_500_IMAGES = 0.41
"""Measured seconds: `cnn`, 32x32, batch 16, one core; the slowest machine so far, without kernels in C."""
SLOWER = {"sparsyfed": 1.6, "dispfl": 1.15}
"""Time relative to FedAvg: upper estimates (re-parameterised layers; masks and their search)."""
START_SECONDS = 15.0
MINUTES = 45.0
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tinyimagenet": 20_000}
"""Training images; of Tiny-ImageNet 100 of every class's 500, as in the part on which the page's runs were made."""


SMALL = tuple(name for name in TABLES if (ROOT / "experiments" / name / "run_small.sh").is_file())
STUDIES = tuple(sorted(path.parent.name for path in (ROOT / "experiments").glob("*/study.json")))


@cache
def _cells(folder: Path, name: str, script: str) -> tuple[Config, ...]:
    """The cells that a script passes to `ssfl sweep`."""
    keep = folder / f"{name}-{script}"
    keep.mkdir()
    stand_in = keep / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    places = {"SSFL": str(stand_in), "PYTHON": str(stand_in), "KEEP": str(keep)}
    places |= {"OUT": str(keep / "out"), "RESULTS": str(keep / "results")}
    clean = {
        key: value for key, value in os.environ.items() if key not in ("SEEDS", "PRESET", "EXTRA", "JOBS")
    }
    command = ["bash", str(ROOT / "experiments" / name / script)]
    subprocess.run(command, check=True, env={**clean, **places}, capture_output=True, timeout=60)
    common = (keep / "words").read_text().split()
    lines = [line.split() for line in (keep / "lines").read_text().splitlines() if not line.startswith("#")]
    cells: list[Config] = []
    for line in lines:
        for words in itertools.product(*map(_values, line)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cells.append(_load((*common, *words)))
    return tuple(cells)


def _values(word: str) -> list[str]:
    key, _, values = word.partition("=")
    # One seed only: each configuration takes time to check, and other seeds are the same.
    if key == "experiment.seed" and values.startswith("110,"):
        return [f"{key}=550"]
    return [f"{key}={value}" for value in values.split(",")[: 1 if key == "experiment.seed" else None]]


@cache
def _load(words: tuple[str, ...]) -> Config:
    return load_config(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the scripts' arguments, for all tests of this file."""
    return tmp_path_factory.mktemp("experiments")


def _fair(config: Config) -> bool:
    return bool(getattr(config.algorithm.params, "fair_budget", False))


def _seconds(config: Config) -> float:
    """Estimated seconds of a run on one core."""
    training = config.training
    trains_all = config.algorithm.name in ("dispfl", "local") and not _fair(config)
    trained = training.comm_round * (training.client_num_in_total if trains_all else cohort_size(config))
    if config.algorithm.name == "fedavg_ft":
        trained += training.client_num_in_total
    tests = 1 + training.comm_round // training.frequency_of_the_test
    pixels = 4.0 if config.dataset.name == "tinyimagenet" else 1.0
    images = IMAGES[config.dataset.name] / training.client_num_in_total * training.epochs * trained
    images += tests * 2 * 10_000 / 3  # both metrics; a forward pass is a third of a step
    return START_SECONDS + images / 500 * SECONDS_PER_500_IMAGES * pixels * SLOWER.get(
        config.algorithm.name, 1.0
    )


@pytest.mark.parametrize("name", SMALL)
def test_the_small_runs_keep_their_time(name: str, folder: Path) -> None:
    cells = _cells(folder, name, "run_small.sh")
    assert all(config.engine.executor == "sequential" for config in cells)
    minutes = 3 * sum(map(_seconds, cells)) / 2 / 60  # three seeds, two cores
    assert minutes < MINUTES
    stated = re.search(
        r"about (\d+) minutes on 2 cores", (ROOT / "experiments" / name / "README.md").read_text()
    )
    assert stated is not None
    assert abs(int(stated.group(1)) - minutes) < 3, (
        f"README.md says {stated.group(1)}, the arithmetic {minutes:.0f}"
    )


@pytest.mark.parametrize("name", SMALL)
def test_every_method_of_the_small_table_gets_the_same_search(name: str, folder: Path) -> None:
    trials = _cells(folder, name, "tune_small.sh")
    budgets = {
        method: sorted((c.optimizer.lr, c.training.comm_round) for c in trials if c.algorithm.name == method)
        for method in {config.algorithm.name for config in trials}
    }
    assert len(set(map(tuple, budgets.values()))) == 1
    # Four rates after the lowest of three was best in an earlier search; the oldest search had three.
    assert {len(trial) for trial in budgets.values()} == {3 if name == "cifar100_dir03" else 4}
    assert all(config.dataset.validation_portion > 0 for config in trials)
    small = {config.algorithm.name for config in _cells(folder, name, "run_small.sh")}
    assert small - {"fedavg_ft", "local"} <= set(budgets)  # these two use FedAvg's rate
    assert {config.experiment.seed for config in trials} == {1}


def test_the_readmes_table_has_all_its_methods(folder: Path) -> None:
    cells = _cells(folder, "cifar10_dir03", "run_paper.sh")
    methods = {(c.algorithm.name, _fair(c)) for c in cells}
    assert {("ssfl", False), ("fedavg", False), ("sparsyfed", False), ("fedavg_ft", False)} <= methods
    assert {("dispfl", False), ("dispfl", True)} <= methods


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_what_its_table_names(name: str, folder: Path) -> None:
    """Its claims compare only settings of this table: `read_study` refuses others."""
    study = read_study(ROOT / "experiments" / name / "study.json")
    scripts = sorted(path.name for path in (ROOT / "experiments" / name).glob("*.sh"))
    cells = [c for script in scripts if script.startswith("run") for c in _study_cells(folder, name, script)]
    trials = [c for script in scripts if script.startswith("tune") for c in _cells(folder, name, script)]
    run = {
        Selector(_method(c), 1.0 if c.algorithm.name in ("fedavg", "fedavg_ft") else c.model.dense_ratio)
        for c in cells
    }
    assert run | {Selector("FedAvg", 1.0)} == {Selector(s.method, float(s.density)) for s in study.order}
    assert {c.dataset.validation_portion for c in cells} == {0.0}
    assert {c.dataset.validation_portion for c in trials} == {0.1}
    budgets = {(c.training.comm_round, c.experiment.seed) for c in trials}
    assert budgets == {(40, 1)}
    # No choice depends on a measurement, so that every run is computed in the same way.
    for config in cells:
        assert "auto" not in (config.engine.executor, config.engine.block, config.engine.convolutions)
        assert "auto" not in (config.engine.memory_format, config.engine.threads, config.engine.workers)


def _study_cells(folder: Path, name: str, script: str) -> tuple[Config, ...]:
    """The cells of a study's script; empty for scripts of the paper's table."""
    return () if script == "run_paper.sh" else _cells(folder, name, script)


def _method(config: Config) -> str:
    return config.algorithm.method.label(config.algorithm.params)


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_a_study_is_up_to_date(name: str, tmp_path: Path) -> None:
    home = ROOT / "experiments" / name
    if not (home / "runs.json").is_file():
        pytest.skip("not run yet")
    for file in home.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    page = write_study(tmp_path, pictures=False).read_text(encoding="utf-8")
    assert (home / "results.md").read_text(encoding="utf-8") == page, "run: bash experiments/keep.sh"


def test_the_table_of_the_codecs_is_up_to_date() -> None:
    home = ROOT / "experiments" / "codec_accuracy"
    results = [home / "runs.json", ROOT / "experiments" / "cifar10_converged" / "runs.json"]
    done = subprocess.run(
        [sys.executable, str(home / "bytes.py"), *map(str, results)],
        capture_output=True,
        text=True,
        check=True,
    )
    remedy = "run: bash experiments/codec_accuracy/run.sh harvest"
    assert (home / "bytes.md").read_text(encoding="utf-8") == done.stdout, remedy


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({}, "SSFL, exact"),
        ({"uplink": "auto", "uplink_step": 0.5}, "SSFL, exact"),
        ({"uplink": "bf16"}, "SSFL, exact, uplink bf16"),
        ({"downlink": "int8"}, "SSFL, exact, downlink int8"),
        ({"mask": "bitmap"}, "SSFL, exact, mask bitmap"),
        ({"profile": "small", "downlink_step": 0.1}, "SSFL, small, downlink_step 0.1"),
        ({"profile": "small", "downlink_versions": 2}, "SSFL, small, downlink_versions 2"),
        ({"profile": "small", "error_feedback": True}, "SSFL, small, error_feedback"),
    ],
)
def test_the_table_of_the_codecs_names_every_codec(setting: dict[str, object], name: str) -> None:
    """Runs with the same name are one cell of the table."""
    spec = importlib.util.spec_from_file_location(
        "codec_bytes", ROOT / "experiments" / "codec_accuracy" / "bytes.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["codec_bytes"] = module
    spec.loader.exec_module(module)
    packed = all_runs([ROOT / "experiments" / "codec_accuracy" / "runs.json"])
    run = next(one for one in packed if label_of(one) == "SSFL")
    run = replace(run, config={**run.config, "communication": setting})
    assert module._name(run) == name


@pytest.mark.parametrize("page", ["README.md", "experiments/cifar10_converged/README.md"])
def test_the_tables_of_a_page_are_up_to_date(page: str, tmp_path: Path) -> None:
    committed = (ROOT / page).read_text(encoding="utf-8")
    again = tmp_path / "README.md"
    again.write_text(committed, encoding="utf-8")
    insert_tables(ROOT / "experiments" / "cifar10_converged", again)
    assert committed == again.read_text(encoding="utf-8"), "run: bash experiments/keep.sh"
    assert committed.count("<!-- end of table -->") == 2


RATES_FROM = {
    "cifar10_converged": "run_others.sh",
    "tinyimagenet": "run_small.sh",
    "cifar10_patho2": "run.sh",
}


@pytest.mark.parametrize("name", RATES_FROM)
def test_no_run_starts_with_a_rate_that_was_not_chosen(name: str, tmp_path: Path) -> None:
    ssfl = tmp_path / "ssfl"
    ssfl.write_text(STAND_IN)
    ssfl.chmod(0o755)
    places = {"SSFL": str(ssfl), "PYTHON": sys.executable, "KEEP": str(tmp_path)}
    places |= {"OUT": str(tmp_path / "out"), "RESULTS": str(tmp_path / "nothing")}
    command = ["bash", str(ROOT / "experiments" / name / RATES_FROM[name])]
    clean = {key: value for key, value in os.environ.items() if key not in ("PRESET", "EXTRA", "UNTUNED")}

    def start(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**clean, **places, **more}, capture_output=True, text=True, timeout=120, check=False
        )

    refused = start()
    assert refused.returncode != 0
    assert "run the tune script of this experiment first" in refused.stderr
    assert not (tmp_path / "lines").exists()
    start(UNTUNED="1")  # `keep` of a small script then finds no runs
    lines = [line for line in (tmp_path / "lines").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.findall(r"optimizer\.lr=(\S*)", line) == ["0.03"] for line in lines)


@pytest.mark.parametrize(
    "name", [name for name in STUDIES if (ROOT / "experiments" / name / "runs.json").is_file()]
)
def test_every_curve_of_a_committed_table_is_flat(name: str) -> None:
    """Computed from the file's rows, for every accuracy of the page's table; those said to rise do."""
    home = ROOT / "experiments" / name
    runs = [
        cell.run for cell in load_compact(home / "runs.json") if cell.run is not None and cell.run.finished
    ]
    page = (home / "results.md").read_text(encoding="utf-8")
    table = page.partition("## Accuracies")[2].partition("## ")[0]
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    counts = Counter((label_of(run), density_of(run)) for run in runs)
    assert lines or max(counts.values()) < 3, "a setting has all its seeds, but the table has no row"
    for method, density, _, _, whole, own, *_ in lines:
        seeds = [
            r for r in runs if (label_of(r), density_of(r)) == (method.removeprefix("| "), float(density))
        ]
        assert len(seeds) == 3
        cells = {"client_accuracy_mean": own, "global_accuracy": whole}
        for accuracy, cell in cells.items():
            if cell == "none":
                continue
            late, before = (
                sum(_mean_between(r, accuracy, *span) for r in seeds) / 3 for span in ((0.9, 1.0), (0.8, 0.9))
            )
            assert (late - before < 0.01) == (cell != "not flat"), f"{method} at {density}: {accuracy}"


def _mean_between(run: Run, accuracy: str, after: float, until: float) -> float:
    """Mean accuracy (0-1) of the rounds between two shares of all rounds; every stored round has it."""
    rounds = run.rounds_asked
    values = [
        float(row[accuracy])
        for row in run.rows
        if row["event"] == "round" and after * rounds < row["round"] <= until * rounds
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("name", TABLES)
def test_paper_scale_is_the_published_experiment(name: str, folder: Path) -> None:
    first = _cells(folder, name, "run_paper.sh")[0]
    assert (first.algorithm.name, first.experiment.seed) == ("ssfl", 550)
    sections = {key: key.split(".") for key in TABLES[name].settings}
    ours = {key: getattr(getattr(first, section), field) for key, (section, field) in sections.items()}
    assert ours == TABLES[name].settings


@pytest.mark.parametrize("name", TABLES)
def test_no_number_without_a_run(name: str) -> None:
    """Until results exist, the README says that nothing was run."""
    home = ROOT / "experiments" / name
    readme = (home / "README.md").read_text(encoding="utf-8")
    for stage in ("small", "paper"):
        if (home / f"run_{stage}.sh").is_file():
            line = f"**{stage.capitalize()} runs: not run yet.**"
            assert (line in readme) != (home / "results" / stage).is_dir()
    assert json.loads((home / "paper.json").read_text())["title"].partition(",")[0] in readme


def test_the_page_of_results_is_up_to_date(tmp_path: Path) -> None:
    from ssfl.report.pages import write_results

    page = write_results(ROOT / "experiments", tmp_path, draw=False).read_text(encoding="utf-8")
    committed = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert committed == page, "run: python -m ssfl.report.pages"
