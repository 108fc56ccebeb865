"""One file for the results of an experiment: every run of its sweeps, small enough to commit.

`runs.json` contains, for each run, its configuration, its environment, and the part of metrics.jsonl that tables and
plots use: the evaluations, and the sums of costs between them. `load_compact` returns the same `Run`s as run folders,
so that all of `ssfl.report` reads both. `python -m ssfl.report.runs.collect SWEEP... FILE` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ssfl.event_fields import event_problem
from ssfl.report.runs.run import Row, Run, RunError, flat, is_evaluated, load_runs, nested
from ssfl.run_folder import METRICS

COMPACT = "runs.json"
FORMAT = 1
ADDITIVE = ("downlink_bytes", "uplink_bytes", "peer_bytes", "train_flops", "wall_seconds")
"""Fields of an exchange that are increments: those of removed rows are added to the next row that is kept."""
KEPT = (
    *("event", "phase", "round", "clients", "density"),
    *("train_loss_last_epoch", "train_loss_all_epochs", "global_accuracy", "global_loss"),
    *("global_validation_accuracy", "client_validation_accuracy_mean", "client_validation_accuracy_std"),
    *("client_accuracy_mean", "client_accuracy_std", "clients_trained", "received_accuracy_mean"),
    *("global_auc", "global_balanced_accuracy", "global_f1", "global_sensitivity", "global_specificity"),
    "peer_bytes",
)
_OF_MASK = ("layer_density", "empty_layers")
_DIGITS = 6
"""Significant digits of numbers that are not integers."""


@final
@dataclass(frozen=True)
class Cell:
    """A cell of a sweep, and its run if there is one."""

    name: str
    label: str
    overrides: tuple[str, ...]
    run: Run | None
    copies: tuple[Path, ...] = ()
    """Other run folders of the cell, which are not used."""


def reduced_rows(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Start, evaluations, phases and end of a run; the costs and the mask of other rounds go to the next kept row.

    Per-client accuracies are kept for the last evaluation, and for the one before a final phase.
    """
    out: list[dict[str, Any]] = []
    carried: dict[str, float] = {}
    mask: dict[str, Any] = {}
    last: Row | None = None
    for row in rows:
        if row["event"] in ("run_started", "run_finished", "resumed", "extended", "run_interrupted"):
            out.append(dict(row))
        elif row["event"] in ("phase", "round"):
            for name in ADDITIVE:
                carried[name] = carried.get(name, 0) + (row.get(name) or 0)
            mask |= {name: row[name] for name in _OF_MASK if name in row}
            last = row
            if row["event"] == "phase" or is_evaluated(row):
                out.append(_exchange(row, carried) | mask)
                carried, mask, last = {}, {}, None
    if last is not None:  # the run did not finish
        out.append(_exchange(last, carried) | mask)
    _attach_clients(out, rows)
    return [{name: _rounded(value) for name, value in row.items()} for row in out]


def _exchange(row: Row, costs: Mapping[str, float]) -> dict[str, Any]:
    kept = {name: row[name] for name in KEPT if name in row and name not in ADDITIVE}
    return kept | {name: value for name, value in costs.items() if value or name != "peer_bytes"}


def _attach_clients(out: Sequence[dict[str, Any]], rows: Iterable[Row]) -> None:
    """The per-client accuracies of the last evaluated round, and of a phase evaluated after it."""
    final: dict[str, Row] = {row["event"]: row for row in rows if row.get("client_accuracy") is not None}
    for event, row in final.items():
        for kept in out:
            if (kept["event"], kept.get("round"), kept.get("phase")) == (
                event,
                row.get("round"),
                row.get("phase"),
            ):
                kept["client_accuracy"] = row["client_accuracy"]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        short = float(f"{value:.{_DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return value


def dumps(cells: Sequence[Cell]) -> str:
    """The file's text; common configuration values and equal environments are written once.

    Keys are sorted, so that collecting a file again keeps its bytes.
    """
    runs = [cell.run for cell in cells if cell.run is not None]
    flats = [dict(sorted(flat(run.config).items())) for run in runs]
    common = {k: v for k, v in flats[0].items() if all(k in f and f[k] == v for f in flats)} if flats else {}
    environments: list[Mapping[str, Any]] = []
    lines = []
    for cell in cells:
        entry: dict[str, Any] = {"name": cell.name, "label": cell.label, "overrides": list(cell.overrides)}
        if cell.run is not None:
            environment = {k: v for k, v in cell.run.environment.items() if k != "command"}
            if environment not in environments:
                environments.append(environment)
            own = {k: v for k, v in sorted(flat(cell.run.config).items()) if common.get(k, _ABSENT) != v}
            entry |= {
                "config": own,
                "environment": environments.index(environment),
                "command": cell.run.environment.get("command", []),
                "rows": reduced_rows(cell.run.rows),
            }
        lines.append(_cell_text(entry))
    head = {"format": FORMAT, "config": common, "environments": environments}
    return json.dumps(head)[:-1] + ', "cells": [\n' + ",\n".join(lines) + "\n]}\n"


_ABSENT = object()


def _cell_text(entry: Mapping[str, Any]) -> str:
    """A cell with one line per row, so that a diff shows only the lines of changed runs."""
    rows = entry.get("rows")
    head = json.dumps({name: value for name, value in entry.items() if name != "rows"})
    if rows is None:
        return head
    return head[:-1] + ', "rows": [\n ' + ",\n ".join(map(json.dumps, rows)) + "\n]}"


def load_compact(path: Path) -> list[Cell]:
    """All cells of a file that `dumps` wrote; a run's folder is FILE/NAME, which does not exist.

    Raises:
        RunError: the file is damaged or of another format.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise RunError(f"{path}: format {stored['format']}, this version reads {FORMAT}")
        return [_cell(path, stored, entry) for entry in stored["cells"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{path}: is not a file of packed runs, such as runs.json ({type(error).__name__}: {error})"
        ) from None


def packed_files(top: Path) -> list[Path]:
    """`top` itself, or the packed results below it; hidden folders are skipped."""
    if top.is_file():
        return [top]
    found = sorted(top.rglob(COMPACT))
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(top).parts)]


def all_runs(tops: Sequence[Path]) -> list[Run]:
    """All runs in folders and packed results.

    Raises:
        RunError: one of `tops` contains no run.
    """
    found: list[Run] = []
    for top in map(Path, tops):
        packed = [
            cell.run for path in packed_files(top) for cell in load_compact(path) if cell.run is not None
        ]
        loose = top.is_dir() and any(top.rglob(METRICS))
        found += packed + (load_runs([top]) if loose or not packed else [])
    return found


def _cell(path: Path, stored: Mapping[str, Any], entry: Mapping[str, Any]) -> Cell:
    run = None
    if "rows" in entry:
        environment = stored["environments"][entry["environment"]] | {"command": entry["command"]}
        config = nested({**stored["config"], **entry["config"]})
        if problem := next(filter(None, map(event_problem, entry["rows"])), ""):
            raise RunError(f"{path}: {entry['name']}: {problem} (docs/metrics.md)")
        run = Run(path / entry["name"], config, tuple(entry["rows"]), environment)
    return Cell(entry["name"], entry["label"], tuple(entry["overrides"]), run)
