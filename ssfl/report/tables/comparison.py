"""A table of runs: for the terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import final

from ssfl.report.runs.labels import density, labels, seed
from ssfl.report.runs.run import Run
from ssfl.report.tables.breakdown import OVERALL
from ssfl.report.tables.grid import Style, draw, without_empty
from ssfl.report.tables.units import Unit, flops_unit, size_unit

VALIDATION = ("global_validation_accuracy", "client_validation_accuracy_mean")


@final
@dataclass(frozen=True)
class Comparison:
    """One run's line; the fields are the columns of the CSV, with their units."""

    setting: str
    density: float | None
    seed: int | None
    status: str
    global_accuracy: float | None
    client_accuracy_mean: float | None
    client_accuracy_std: float | None
    global_validation_accuracy: float | None
    client_validation_accuracy_mean: float | None
    client_validation_accuracy_std: float | None
    global_auc: float | None
    global_balanced_accuracy: float | None
    global_f1: float | None
    downlink_bytes: int
    uplink_bytes: int
    peer_bytes: int
    bytes_ratio: float | None  # dense FedAvg's bytes / this run's bytes
    train_flops: float
    wall_seconds: float
    folder: str

    def cells(self, size: Unit, flops: Unit) -> list[str]:
        """The cells as text: percent, and bytes and FLOPs in these units."""
        return [
            self.setting,
            "" if self.density is None else f"{self.density:g}",
            "" if self.seed is None else str(self.seed),
            self.status,
            _percent(self.global_accuracy),
            _mean_and_std(self.client_accuracy_mean, self.client_accuracy_std),
            _percent(self.global_validation_accuracy),
            _mean_and_std(self.client_validation_accuracy_mean, self.client_validation_accuracy_std),
            *map(_percent, (self.global_auc, self.global_balanced_accuracy, self.global_f1)),
            f"{self.downlink_bytes / size.scale:,.2f}",
            f"{self.uplink_bytes / size.scale:,.2f}",
            f"{self.peer_bytes / size.scale:,.2f}" if self.peer_bytes else "",
            "" if self.bytes_ratio is None else f"{self.bytes_ratio:.2f}",
            f"{self.train_flops / flops.scale:,.3g}",
            f"{self.wall_seconds:,.0f}",
        ]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """One line per run, in the given order; an unfinished run has its values so far."""
    return [_compare(run, label) for run, label in zip(runs, labels(runs, with_density=False))]


def comparison_table(runs: Sequence[Run], style: Style = "text", width: int | None = None) -> str:
    """One line per run: accuracies, bytes, FLOPs, seconds, and whether it finished.

    Args:
        runs: in the order of the lines.
        style: text (for a terminal) | markdown | csv (plain numbers in base units).
        width: of the text, in columns; None: that of the terminal.
    """
    lines = compare(runs)
    if style == "csv":
        return _csv(lines)
    size = size_unit([max(line.downlink_bytes, line.uplink_bytes) for line in lines])
    flops = flops_unit([line.train_flops for line in lines])
    always = ["method", "density", "seed", "status", "global %", "clients %"]
    sometimes = ["validation: global %", "clients %", *OVERALL.values()]
    costs = [
        f"{size.name} down",
        f"{size.name} up",
        f"{size.name} peer",
        "FedAvg bytes / these",
        flops.name,
        "seconds",
    ]
    head = [*always, *sometimes, *costs]
    optional = [*range(len(always), len(always) + len(sometimes)), head.index(f"{size.name} peer")]
    head, cells = without_empty(head, [line.cells(size, flops) for line in lines], optional)
    return draw(head, cells, style, width, text_columns=(0, 3))


def seeds_table(runs: Sequence[Run], style: Style = "text", width: int | None = None) -> str:
    """Mean and sample standard deviation over the finished runs of each setting that has two or more.

    Empty if no setting was repeated. One column is the number of unfinished runs, which are not included.
    """
    grouped: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels(runs)):
        grouped.setdefault(label, []).append(run)
    cells = []
    for label, members in grouped.items():
        finished = [run.last_evaluation() for run in members if run.finished]
        if len(finished) > 1:
            left_out = str(len(members) - len(finished))
            names = ("global_accuracy", "client_accuracy_mean", *VALIDATION, *OVERALL)
            overall = [_over_seeds(finished, name) for name in names]
            cells.append([label, str(len(finished)), left_out, *overall])
    if not cells:
        return ""
    head = ["method", "finished runs", "left out", "global %, mean ± std", "clients %, mean ± std"]
    extra = [f"{name}, mean ± std" for name in ("validation: global %", "clients %", *OVERALL.values())]
    head, cells = without_empty([*head, *extra], cells, range(len(head), len(head) + len(extra)))
    return draw(head, cells, style, width, text_columns=(0,))


def _compare(run: Run, label: str) -> Comparison:
    last = run.last_evaluation()
    return Comparison(
        setting=label,
        density=density(run),
        seed=seed(run),
        status=run.status,
        global_accuracy=last.get("global_accuracy"),
        client_accuracy_mean=last.get("client_accuracy_mean"),
        client_accuracy_std=last.get("client_accuracy_std"),
        global_validation_accuracy=last.get("global_validation_accuracy"),
        client_validation_accuracy_mean=last.get("client_validation_accuracy_mean"),
        client_validation_accuracy_std=last.get("client_validation_accuracy_std"),
        **{name: last.get(name) for name in OVERALL},
        downlink_bytes=int(run.total("downlink_bytes")),
        uplink_bytes=int(run.total("uplink_bytes")),
        peer_bytes=int(run.total("peer_bytes")),
        bytes_ratio=run.bytes_ratio,
        train_flops=run.total("train_flops"),
        wall_seconds=run.wall_seconds,
        folder=str(run.folder),
    )


def _over_seeds(rows: Sequence[object], name: str) -> str:
    values = [row[name] for row in rows if isinstance(row, dict) and row.get(name) is not None]
    return _mean_and_std(statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _mean_and_std(mean: float | None, std: float | None) -> str:
    return _percent(mean) + ("" if mean is None or std is None else f" ± {100 * std:.2f}")


def _csv(lines: Sequence[Comparison]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(Comparison)])
    writer.writerows(astuple(line) for line in lines)
    return out.getvalue()
