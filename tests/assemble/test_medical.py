"""A complete run on sites with names and imbalanced classes, from the file to the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from ssfl import assemble
from ssfl.assemble.build import setup_of
from ssfl.cli import main
from ssfl.config import ConfigError, config_from_yaml
from ssfl.models.trained import load_trained
from ssfl.report.runs import load_run
from ssfl.report.tables.breakdown import classes_table, sites_table
from ssfl.report.tables.comparison import comparison_table
from ssfl.report.tables.paper_table import paper_table
from ssfl.report.tables.summary import summary_text
from tests.support.assembled import config

SITES = ("Ulm", "Bath", "York")


def write_sites(path: Path) -> None:
    """Three hospitals of unequal size; one row in six is ill."""
    draws = np.random.default_rng(5)
    y = (draws.random(300) < 1 / 6).astype(int)
    x = draws.normal(size=(300, 4)) + 1.2 * y[:, None]
    sites = draws.choice(SITES, 300, p=[0.5, 0.3, 0.2])
    parts = {"train": slice(0, 200), "test": slice(200, 300)}
    columns = {f"{part}_x": x[rows] for part, rows in parts.items()}
    columns |= {f"{part}_y": y[rows] for part, rows in parts.items()}
    columns |= {f"{part}_site": sites[rows] for part, rows in parts.items()}
    np.savez(path, class_names=["well", "ill"], **columns)  # type: ignore[arg-type]


def words(folder: Path, *more: str) -> tuple[str, ...]:
    return (
        f"dataset.name={folder / 'sites.npz'}",
        "dataset.partition_method=natural",
        "training.client_num_in_total=100",
        "training.client_num_per_round=3",
        "training.comm_round=3",
        "model.name=mlp",
        "algorithm=fedavg",
        "tracking.metrics=imbalanced",
        f"experiment.output_dir={folder}",
        "wandb.exp_name=sites",
        *more,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("medical")
    write_sites(folder / "sites.npz")
    assert assemble.run(config(*words(folder, "dataset.validation_portion=0.2"))) == 0
    (made,) = (folder / "sites").iterdir()
    return made


def last(folder: Path, event: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event][-1]


def test_the_metrics_are_scikit_learns_on_raw_test_rows(run: Path) -> None:
    """Computed with a new network that is loaded from the exported file."""
    data = np.load(run.parent.parent / "sites.npz")
    with torch.no_grad():
        p = (
            load_trained(run / "model.safetensors")(torch.from_numpy(data["test_x"]).float())
            .softmax(1)
            .numpy()
        )
    y, row, finished = data["test_y"], last(run, "round"), last(run, "run_finished")
    found = {
        "global_auc": roc_auc_score(y, p[:, 1]),
        "global_balanced_accuracy": balanced_accuracy_score(y, p.argmax(1)),
        "global_f1": f1_score(y, p.argmax(1), average="macro"),
    }
    for name, value in found.items():
        assert row[name] == finished[name] == pytest.approx(value, abs=1e-6)
    assert row["global_sensitivity"] == pytest.approx(row["global_class_accuracy"])
    assert row["global_validation_auc"] != row["global_auc"]


def test_sites_decide_how_many_clients_there_are(run: Path) -> None:
    kept = config_from_yaml((run / "config.yaml").read_text())
    assert kept.training.client_num_in_total == 3
    started = last(run, "run_started")
    assert (started["clients"], started["client_names"]) == (3, sorted(SITES))
    assert "training.client_num_in_total" in started["unread_keys"]


def test_a_cohort_that_the_sites_cannot_give_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.frac=0\.1: .*client_num_in_total=3"):
        setup_of(config(*words(run.parent.parent, "training.client_num_per_round=-1", "training.frac=0.1")))
    with pytest.raises(ConfigError, match="client_num_per_round=7"):
        setup_of(config(*words(run.parent.parent, "training.client_num_per_round=7")))


def test_partition_says_so_and_names_the_sites(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = run.parent.parent / "who.png"
    asked = [word for word in words(run.parent.parent) if "per_round" not in word]
    assert main(["partition", *asked, "--out", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert "3 clients, one per site of the data; training.client_num_in_total=100 is not used" in err
    data = np.load(run.parent.parent / "sites.npz")
    for site in SITES:
        (line,) = [line.split() for line in out.splitlines() if line.split()[:1] == [site]]
        assert int(line[1]) == (data["train_site"] == site).sum()
        assert int(line[2]) == (data["test_site"] == site).sum()
    assert picture.stat().st_size > 1000


def test_tables_and_summary_show_them(run: Path) -> None:
    one, row = load_run(run), last(run, "round")
    auc, balanced = (f"{100 * row[name]:.2f}" for name in ("global_auc", "global_balanced_accuracy"))
    assert f"AUC {auc}, balanced {balanced}, F1 " in summary_text(one)
    head, _, line = comparison_table([one], "markdown").splitlines()
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    assert (cells[" AUC % "].strip(), cells[" balanced % "].strip()) == (auc, balanced)
    assert f"| {auc} |" in paper_table([run], "markdown")
    by_class = classes_table([one], "markdown").splitlines()
    sensitivity, specificity = row["global_sensitivity"], row["global_specificity"]
    assert by_class[2:] == [
        f"| {name} | {100 * sensitivity[i]:.2f} / {100 * specificity[i]:.2f} |"
        for i, name in enumerate(("well", "ill"))
    ]
    by_site = sites_table([one], "markdown").splitlines()
    assert by_site[2:] == [
        f"| {name} | {100 * row['client_accuracy'][i]:.2f} |" for i, name in enumerate(sorted(SITES))
    ]
    report = (run / "report" / "comparison.md").read_text()
    assert "By site" in report
    assert "By class" in report


def test_nothing_of_it_where_only_accuracy_is_asked_for(tmp_path: Path) -> None:
    write_sites(tmp_path / "sites.npz")
    plain = words(tmp_path, "tracking.metrics=accuracy", "dataset.partition_method=iid")
    assert assemble.run(config(*plain, "training.client_num_in_total=3")) == 0
    (made,) = (tmp_path / "sites").iterdir()
    assert not [name for name in last(made, "round") if "auc" in name or "sensitivity" in name]
    one = load_run(made)
    assert "AUC" not in summary_text(one) + comparison_table([one]) + paper_table([made])
    assert (classes_table([one]), sites_table([one])) == ("", "")
