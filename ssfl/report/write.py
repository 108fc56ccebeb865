"""Everything that a report consists of, written to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ssfl.report.labels import density, method, seed
from ssfl.report.runs import Run, load_runs
from ssfl.report.tables import comparison_table, seeds_table


@final
@dataclass(frozen=True)
class Report:
    """What was written, and the tables for the terminal; `print(report)` shows both."""

    paths: list[Path]
    text: str

    def __str__(self) -> str:
        return self.text + "\n" + "\n".join(f"written: {path}" for path in self.paths)


def write_report(folders: Sequence[Path], out_dir: Path) -> Report:
    """Tables (Markdown, CSV) and plots (PNG) of all runs among and below `folders`.

    A plot that would be empty is not written: no layer densities without a mask, no curves before an evaluation.

    Raises:
        RunError: a folder holds no run, or a run's files are damaged.
    """
    runs = in_order(load_runs(folders))
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tables = {
        "comparison.md": _sections(runs, comparison_table(runs, "markdown"), seeds_table(runs, "markdown")),
        "comparison.csv": comparison_table(runs, "csv"),
    }
    paths = []
    for name, text in tables.items():
        paths.append(out_dir / name)
        paths[-1].write_text(text, encoding="utf-8")
    paths += _plots(runs, out_dir)
    return Report(paths, _sections(runs, comparison_table(runs), seeds_table(runs)))


def in_order(runs: Sequence[Run]) -> list[Run]:
    """By method, then from dense to sparse, then by seed: what belongs together stands together."""
    return sorted(
        runs, key=lambda run: (method(run), -(density(run) or 0.0), seed(run) or 0, str(run.folder))
    )


def _sections(runs: Sequence[Run], each: str, over_seeds: str) -> str:
    text = each
    if over_seeds:
        text += f"\nOver seeds, finished runs only:\n\n{over_seeds}"
    unfinished = sum(run.finished is None for run in runs)
    if unfinished:
        text += f"\n{unfinished} of {len(runs)} runs did not finish: their numbers are those so far.\n"
    return text


def _plots(runs: Sequence[Run], out_dir: Path) -> list[Path]:
    # Here and not above: reading runs needs no matplotlib.
    from ssfl.report import plots

    evaluated = any(run.evaluations for run in runs)
    wanted = {
        "accuracy_rounds.png": (plots.accuracy_against_rounds, evaluated),
        "accuracy_bytes.png": (plots.accuracy_against_bytes, evaluated),
        "client_accuracy.png": (
            plots.client_accuracy_spread,
            any(run.last_evaluation().get("client_accuracy") for run in runs),
        ),
        "layer_density.png": (plots.layer_density, any(run.layer_density for run in runs)),
    }
    paths = []
    for name, (draw, has_content) in wanted.items():
        if has_content:
            paths.append(out_dir / name)
            draw(runs).savefig(paths[-1], dpi=150)
    return paths
