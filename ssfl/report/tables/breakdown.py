"""The metrics of `tracking.metrics=imbalanced`, and accuracy by class and site: means over finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ssfl.report.runs.labels import labels
from ssfl.report.runs.run import Row, Run
from ssfl.report.tables.grid import Style, draw

OVERALL: Mapping[str, str] = MappingProxyType(
    {"global_auc": "AUC %", "global_balanced_accuracy": "balanced %", "global_f1": "F1 %"}
)
"""Fields of an evaluation and their names in tables, for the global model on the whole test set."""


def classes_table(runs: Sequence[Run], style: Style = "text") -> str:
    """Sensitivity and specificity of the global model by class; empty if no run has them."""
    return _table(runs, style, "class", "class_names", ("global_sensitivity", "global_specificity"))


def sites_table(runs: Sequence[Run], style: Style = "text") -> str:
    """Accuracy of each site's own model on its own test rows, by name; empty if sites have no names."""
    return _table(runs, style, "site", "client_names", ("client_accuracy",))


def _table(runs: Sequence[Run], style: Style, corner: str, names: str, fields: Sequence[str]) -> str:
    """Rows are names, columns are settings. Only runs with the names of the first run: others use other data."""
    names_by_run = [run.started.get(names) for run in runs]
    lines = next((tuple(found) for found in names_by_run if found), ())
    grouped: dict[str, list[Row]] = {}
    for run, label, found in zip(runs, labels(runs), names_by_run):
        if run.finished and found and tuple(found) == lines and run.last_evaluation().get(fields[0]):
            grouped.setdefault(label, []).append(run.last_evaluation())
    if not grouped:
        return ""
    metrics = " / ".join(field.rpartition("_")[2] for field in fields)
    head = [corner, *(f"{label}: {metrics} %" for label in grouped)]
    cells = [
        [name, *(" / ".join(_mean(rows, field, i) for field in fields) for rows in grouped.values())]
        for i, name in enumerate(lines)
    ]
    return draw(head, cells, style, None, text_columns=(0,))


def _mean(rows: Sequence[Row], field: str, place: int) -> str:
    """Mean in percent; – if it is not defined, as for a class or a site without test rows."""
    known = [row[field][place] for row in rows if row[field][place] is not None]
    return f"{100 * statistics.fmean(known):.2f}" if known else "–"
