"""Published numbers of SSFL and the methods it is compared with, their sources, and what is unknown.

Contains only numbers that a public source states. The paper's full tables, its standard deviations and ResNet18
beyond 50 % sparsity were not found. `python -m ssfl.report.paper.published` writes these tables as
experiments/NAME/paper.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, final

Value = float | int | str
Metric = Literal["global", "clients"]

README = "README of the authors' code (riohib/SSFL)"
SUMMARY = "a third party's summary of arXiv 2405.09037v2 (secondary)"
PORT = "README of the first author's port to Flower (flwrlabs/flower, pull request 7900)"
UNSTATED = "not stated; the author compares a global accuracy on the whole test set with it"
LIKE_CIFAR10 = "not stated; taken to be what it is on CIFAR-10"
SPARSYFED = "not stated; SparsyFed's own code tests the global model"
PERSONAL = "mean over clients on their own test splits: the method has no global model"


@final
@dataclass(frozen=True)
class Published:
    """One published accuracy."""

    method: str  # as `ssfl.report.runs.labels.method` writes it
    density: float  # share kept (0-1); 1 for dense methods
    accuracy_percent: float
    metric: Metric  # the accuracy that we assume it is
    sure: bool  # False: the source does not say which accuracy it is
    metric_why: str
    source: str
    runs: int | None = None  # number of seeds in the mean; None: not stated
    by: Literal["paper", "port"] = "paper"  # the port's numbers are single runs and not in the paper's column

    @property
    def metric_said(self) -> str:
        """The metric, with a question mark if it is assumed."""
        return self.metric if self.sure else f"{self.metric}?"


@final
@dataclass(frozen=True)
class PaperTable:
    """The known part of one published table."""

    title: str
    settings: Mapping[
        str, float | int | str
    ]  # configuration keys of the published experiment, as far as known
    numbers: tuple[Published, ...]
    unknown: tuple[str, ...] = field(default=())


_CIFAR10: dict[str, Value] = {
    "model.name": "resnet18",
    "dataset.name": "cifar10",
    "dataset.partition_method": "dir",
    "dataset.partition_alpha": 0.3,
    "training.client_num_in_total": 100,
    "training.frac": 0.1,
    "training.comm_round": 1000,
    "training.epochs": 5,
    "training.batch_size": 16,
}
_CIFAR100: dict[str, Value] = {
    **_CIFAR10,
    "dataset.name": "cifar100",
    "training.epochs": 10,
    "training.batch_size": 128,
    "optimizer.momentum": 0.9,
    "optimizer.scheduler": "cosine_annealing",
}
_SEEDS = "the five seeds of the published means (550 is the one shown)"
_SPREAD = "standard deviations"

TABLES: Mapping[str, PaperTable] = {
    "cifar10_dir03": PaperTable(
        "CIFAR-10, ResNet18, Dirichlet 0.3, 50 % sparsity",
        _CIFAR10,
        (
            Published("SSFL", 0.5, 88.29, "global", False, UNSTATED, f"{README}; {SUMMARY}; {PORT}", runs=5),
            Published("FedAvg", 1.0, 86.04, "global", False, UNSTATED, README),
            Published(
                "FedAvg-FT",
                1.0,
                88.02,
                "clients",
                True,
                "clients' fine-tuned models on their own splits",
                SUMMARY,
            ),
            Published("DisPFL", 0.5, 85.12, "clients", True, PERSONAL, README),
            Published(
                "SparsyFed",
                0.5,
                80.94,
                "global",
                False,
                SPARSYFED,
                README,
            ),
            Published(
                "SSFL",
                0.5,
                89.56,
                "global",
                True,
                "global model, whole test set, round 990, seed 550",
                PORT,
                1,
                "port",
            ),
        ),
        (_SEEDS, _SPREAD, "rounds, batch and variant of the DisPFL and SparsyFed runs"),
    ),
    "cifar100_dir03": PaperTable(
        "CIFAR-100, ResNet18, Dirichlet 0.3, 50 % sparsity",
        _CIFAR100,
        (
            Published("SSFL", 0.5, 61.37, "global", False, UNSTATED + "; 'about'", PORT, runs=5),
            Published(
                "SSFL",
                0.5,
                59.75,
                "global",
                True,
                "global model, whole test set, round 990, seed 550",
                PORT,
                1,
                "port",
            ),
        ),
        (_SEEDS, _SPREAD, "every other method's accuracy"),
    ),
    "cifar10_patho2": PaperTable(
        "CIFAR-10, ResNet18, two classes a client, 50 % sparsity",
        {**_CIFAR10, "dataset.partition_method": "patho", "dataset.partition_alpha": 2},
        (
            Published(
                "SSFL",
                0.5,
                94.61,
                "clients",
                False,
                "not stated; hardly a global accuracy, being above the Dirichlet 0.3 number",
                SUMMARY,
            ),
        ),
        (_SEEDS, _SPREAD, "every other method's accuracy", "whether the density was 0.5"),
    ),
    "resnet50_sparsity": PaperTable(
        "CIFAR-10, ResNet50, 50 to 95 % sparsity",
        {**_CIFAR10, "model.name": "resnet50"},
        (
            Published("SSFL", 0.05, 47.53, "global", False, LIKE_CIFAR10, f"{SUMMARY}; the gap: {README}"),
            Published("DisPFL", 0.05, 12.04, "clients", True, PERSONAL, f"{SUMMARY}; the gap: {README}"),
        ),
        (_SEEDS, _SPREAD, "accuracies at 50 to 90 % sparsity", "rounds and local epochs of this sweep"),
    ),
    "tinyimagenet": PaperTable(
        "Tiny-ImageNet, ResNet18, 50 % sparsity",
        {**_CIFAR10, "model.name": "tiny_resnet18", "dataset.name": "tinyimagenet"},
        (Published("SSFL", 0.5, 19.4, "global", False, LIKE_CIFAR10, f"{SUMMARY}: best of those compared"),),
        (_SEEDS, _SPREAD, "every other method's accuracy", "the hyperparameters: CIFAR-10's are taken"),
    ),
}
"""Published tables by the name of their folder in experiments/."""


def find(table: str, method: str, density: float | None) -> Published | None:
    """The paper's number for a method at a density; None if it is unknown. The port's numbers are not included."""
    if density is None:
        return None
    known = (
        number
        for number in TABLES[table].numbers
        if number.by == "paper" and number.method.casefold() == method.casefold()
    )
    return next((number for number in known if abs(number.density - density) < 1e-9), None)


def guess_table(config: Mapping[str, object], folder: Path) -> str | None:
    """The published table that a run belongs to: by the name of its folder, else by network, data and split."""
    for part in reversed(folder.absolute().parts):
        if part in TABLES:
            return part
    keys = ("model.name", "dataset.name", "dataset.partition_method", "dataset.partition_alpha")
    for name in ("resnet50_sparsity", "cifar10_dir03", "cifar100_dir03", "cifar10_patho2", "tinyimagenet"):
        wanted = TABLES[name].settings
        if all(config.get(key) == wanted[key] for key in keys if (key, name) not in _ANY_NETWORK):
            return name
    return None


_ANY_NETWORK = {("model.name", name) for name in TABLES if name != "resnet50_sparsity"}
"""Also for a smaller network on the same data and split; the table then says how the runs differ."""


def table_json(name: str) -> str:
    """A table as the text of its paper.json."""
    return json.dumps(asdict(TABLES[name]), indent=2, ensure_ascii=False) + "\n"


def main(words: Sequence[str]) -> int:
    """Write experiments/NAME/paper.json for every table into the given folder (default: experiments)."""
    above = Path(words[0]) if words else Path("experiments")
    for name in TABLES:
        (above / name).mkdir(parents=True, exist_ok=True)
        (above / name / "paper.json").write_text(table_json(name), encoding="utf-8")
        print(above / name / "paper.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
