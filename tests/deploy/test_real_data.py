"""Two real federations end to end: four hospitals' heart-disease tables, CIFAR-10 over five sites."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from tests.deploy.live import live_federation
from tests.deploy.oracle import check_ledger, missing_of

FOLDER = Path(os.environ.get("SSFL_DATA_DIR", "dataset"))


def needs(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name} in SSFL_DATA_DIR")
    return path


def finish(root: Path, words: list[str], sites: int, rounds: int) -> list[dict[str, Any]]:
    """A run over site files that lie there already; its events."""
    with live_federation(root, [], sites, partition=False) as live:
        words = [*words, f"training.comm_round={rounds}", f"experiment.output_dir={root / 'outputs'}"]
        live.server.run({"words": " ".join([*words, f"deploy.sites={sites}", "deploy.quorum=1.0"])})
        live.wait(live.finished, 600, "the run has not finished")
        events = live.events()
    check_ledger(events, rounds)
    assert not missing_of(events)
    return events


@pytest.mark.slow
@pytest.mark.data
def test_four_hospitals_train_a_classifier_of_heart_disease(tmp_path: Path) -> None:
    columns = np.load(needs("heart_disease.npz"), allow_pickle=False)
    x, y, site = (columns[key] for key in ("x", "y", "site"))
    # Each hospital fills what it did not measure by its own mean; nothing is shared for that.
    for number, name in enumerate(np.unique(site)):
        own = x[site == name].astype(np.float64)
        with np.errstate(invalid="ignore"):
            mean = np.where(
                np.isnan(own).all(0), 0.0, np.nanmean(np.where(np.isnan(own).all(0), 0.0, own), axis=0)
            )
        filled = np.where(np.isnan(own), mean, own).astype(np.float32)
        folder = tmp_path / "data" / f"site-{number}"
        folder.mkdir(parents=True)
        np.savez(folder / "data.npz", train_x=filled, train_y=(y[site == name] > 0).astype(np.int64))
    words = [
        "model.name=mlp",
        "algorithm=ssfl",
        "model.dense_ratio=0.5",
        "training.frac=1.0",
        "training.epochs=2",
    ]
    words += ["optimizer.lr=0.05", "deploy.scaling=site", "dataset.augment=false"]
    events = finish(tmp_path, words, 4, 30)
    last = [e for e in events if e["event"] == "round"][-1]
    assert len(last["client_accuracy"]) == 4
    assert last["client_accuracy_mean"] > 0.75, "a hospital's majority class alone gives 0.5 to 0.9"
    assert last["density"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.data
def test_cifar10_over_five_sites(tmp_path: Path) -> None:
    columns = np.load(needs("cifar10.npz"), allow_pickle=False)
    names = np.array([str(n) for n in range(10)])
    for number in range(5):
        rows, tests = slice(number, 4000, 5), slice(number, 1000, 5)
        folder = tmp_path / "data" / f"site-{number}"
        folder.mkdir(parents=True)
        np.savez(
            folder / "data.npz",
            train_x=columns["train_x"][rows],
            train_y=columns["train_y"][rows],
            test_x=columns["test_x"][tests],
            test_y=columns["test_y"][tests],
            class_names=names,
        )
    words = [
        "model.name=cnn",
        "dataset.name=cifar10",
        "algorithm=ssfl",
        "model.dense_ratio=0.5",
        "training.frac=1.0",
    ]
    words += ["training.epochs=2", "optimizer.lr=0.03"]
    events = finish(tmp_path, words, 5, 5)
    accuracies = [e["client_accuracy_mean"] for e in events if e["event"] == "round"]
    assert accuracies[-1] > 0.25
    assert accuracies[-1] > accuracies[0]
