"""Runs side by side: for the terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import final

from ssfl.report.grid import Style, draw
from ssfl.report.labels import density, labels, seed
from ssfl.report.runs import Run


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
    downlink_bytes: int
    uplink_bytes: int
    peer_bytes: int
    bytes_ratio: float | None  # dense FedAvg's bytes over this run's
    train_flops: float
    wall_seconds: float
    folder: str

    def cells(self, with_peers: bool) -> list[str]:
        """As a reader wants it: percent, megabytes, teraFLOPs."""
        peers = [f"{self.peer_bytes / 1e6:,.2f}"] if with_peers else []
        return [
            self.setting,
            "" if self.density is None else f"{self.density:g}",
            "" if self.seed is None else str(self.seed),
            self.status,
            _percent(self.global_accuracy),
            _mean_and_std(self.client_accuracy_mean, self.client_accuracy_std),
            f"{self.downlink_bytes / 1e6:,.2f}",
            f"{self.uplink_bytes / 1e6:,.2f}",
            *peers,
            "" if self.bytes_ratio is None else f"{self.bytes_ratio:.2f}",
            f"{self.train_flops / 1e12:,.3g}",
            f"{self.wall_seconds:,.0f}",
        ]


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """A line a run, in the order given; of an unfinished run what there is until now."""
    return [_compare(run, label) for run, label in zip(runs, labels(runs, with_density=False))]


def comparison_table(runs: Sequence[Run], style: Style = "text", width: int | None = None) -> str:
    """Every run by itself: accuracies, bytes, FLOPs, seconds, and whether it finished.

    Args:
        runs: in the order of the lines.
        style: text (for a terminal) | markdown | csv (plain numbers in base units).
        width: of the text, in columns; None: the terminal's.
    """
    lines = compare(runs)
    if style == "csv":
        return _csv(lines)
    with_peers = any(line.peer_bytes for line in lines)
    head = ["method", "density", "seed", "status", "global %", "clients %", "MB down", "MB up"]
    head += ["MB peer"] if with_peers else []
    head += ["FedAvg bytes / these", "TFLOPs", "seconds"]
    return draw(head, [line.cells(with_peers) for line in lines], style, width, text_columns=(0, 3))


def seeds_table(runs: Sequence[Run], style: Style = "text", width: int | None = None) -> str:
    """Mean and sample standard deviation over the finished runs of each setting that has two or more.

    Empty where no setting was repeated. How many runs were left out, being unfinished, is a column.
    """
    grouped: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels(runs)):
        grouped.setdefault(label, []).append(run)
    cells = []
    for label, members in grouped.items():
        finished = [run.last_evaluation() for run in members if run.finished]
        if len(finished) > 1:
            left_out = str(len(members) - len(finished))
            overall = [_over_seeds(finished, name) for name in ("global_accuracy", "client_accuracy_mean")]
            cells.append([label, str(len(finished)), left_out, *overall])
    if not cells:
        return ""
    head = ["method", "finished runs", "left out", "global %, mean ± std", "clients %, mean ± std"]
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
