"""Writes a report to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl.output import whole_file, write_atomically
from ssfl.report.runs.compact import all_runs
from ssfl.report.runs.copies import copies_note, one_a_seed
from ssfl.report.runs.labels import density, method, seed
from ssfl.report.runs.run import Run
from ssfl.report.tables.breakdown import classes_table, sites_table
from ssfl.report.tables.comparison import comparison_table, seeds_table
from ssfl.report.tables.grid import Style
from ssfl.report.tables.paper_table import code_notes
from ssfl.run_folder import TABLE


@final
@dataclass(frozen=True)
class Report:
    """The written files, and the tables for the terminal; `print(report)` shows both."""

    paths: list[Path]
    text: str

    def __str__(self) -> str:
        return self.text + "\n" + "\n".join(f"written: {path}" for path in self.paths)


def write_report(folders: Sequence[Path], out_dir: Path) -> Report:
    """Write tables (Markdown, CSV) and plots (PNG) of all runs in `folders`.

    A plot that would be empty is not written: no layer densities without a mask, no curves before an evaluation.

    Raises:
        RunError: a folder contains no run, or a run's files are damaged.
    """
    runs, copies = one_a_seed(in_order(all_runs(folders)))
    left_out = copies_note([run.folder for run in copies])
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    parts: list[Style] = ["markdown", "text"]
    written, shown = (_sections(runs, style, left_out) for style in parts)
    tables = {
        "comparison.csv": comparison_table(runs, "csv"),
        TABLE: written,
    }
    plots = _plots(runs, out_dir)
    for name, text in tables.items():  # last: if TABLE exists, the report is complete
        write_atomically(out_dir / name, text.encode())
    paths = [out_dir / TABLE, out_dir / "comparison.csv", *plots]
    return Report(paths, shown)


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Sorted by method, then from dense to sparse, then by seed."""
    return sorted(
        runs, key=lambda run: (method(run), -(density(run) or 0.0), seed(run) or 0, str(run.folder))
    )


def _sections(runs: Sequence[Run], style: Style, left_out: Sequence[str]) -> str:
    text = comparison_table(runs, style)
    further = {
        "Over seeds, finished runs only:": seeds_table(runs, style),
        "By class, of the global model (means over finished runs):": classes_table(runs, style),
        "By site, own models on own test rows (means over finished runs):": sites_table(runs, style),
    }
    text += "".join(f"\n{title}\n\n{table}" for title, table in further.items() if table)
    text += "".join(f"\n{note}\n" for note in [*code_notes(runs), *left_out])
    unfinished = sum(run.finished is None for run in runs)
    if unfinished:
        text += f"\n{unfinished} of {len(runs)} runs did not finish; their numbers are those so far.\n"
    return text


def _plots(runs: Sequence[Run], out_dir: Path) -> list[Path]:
    # Imported here: reading runs does not need matplotlib.
    from ssfl.report.figures import run_figures

    evaluated = any(run.evaluations for run in runs)
    wanted = {
        "accuracy_rounds.png": (run_figures.accuracy_against_rounds, evaluated),
        "accuracy_bytes.png": (run_figures.accuracy_against_bytes, evaluated),
        "client_accuracy.png": (
            run_figures.client_accuracy_spread,
            any(run.last_evaluation().get("client_accuracy") for run in runs),
        ),
        "layer_density.png": (run_figures.layer_density, any(run.layer_density for run in runs)),
    }
    paths = []
    for name, (draw, has_content) in wanted.items():
        if has_content:
            paths.append(out_dir / name)
            with whole_file(paths[-1]) as temporary:
                draw(runs).savefig(temporary, dpi=150)
    return paths
