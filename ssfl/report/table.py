"""Our numbers beside the paper's: mean and standard deviation over seeds, what is missing said, the command of each.

The two accuracies stand in columns of their own and are never mixed: `global` is the global model on the whole test
set, `clients` the mean over clients of each client's own model on its own test split. A published number stands with
the metric it is believed to be.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, final

from ssfl.report.cells import Setting, flat, settings
from ssfl.report.grid import draw
from ssfl.report.labels import density
from ssfl.report.paper import TABLES, Published, find, guess_table
from ssfl.report.runs import Run, RunError

Format = Literal["text", "markdown", "csv", "latex"]
HEAD = ("", "method", "seeds", "global %", "clients %", "paper %", "paper's metric", "MB sent", "TFLOPs")


@final
@dataclass(frozen=True)
class Line:
    """One setting; the fields are the columns of the CSV. Accuracies in percent, std: sample, over seeds."""

    number: int
    method: str
    density: float | None
    seeds_finished: int
    seeds_asked: int
    seeds: str
    global_mean: float | None
    global_std: float | None
    clients_mean: float | None
    clients_std: float | None
    has_global_model: bool | None  # None: not known yet
    paper: float | None
    paper_metric: str
    paper_source: str
    bytes_sent: float | None
    train_flops: float | None
    command: str

    def cells(self) -> list[str]:
        """As a reader wants it."""
        without = "no global model" if self.has_global_model is False else "–"
        return [
            str(self.number),
            self.method,
            self.seeds,
            _spread(self.global_mean, self.global_std) or without,
            _spread(self.clients_mean, self.clients_std) or "–",
            "" if self.paper is None else f"{self.paper:.2f}",
            self.paper_metric,
            "" if self.bytes_sent is None else f"{self.bytes_sent / 1e6:,.1f}",
            "" if self.train_flops is None else f"{self.train_flops / 1e12:,.3g}",
        ]


def paper_table(
    folders: Sequence[Path], style: Format = "text", paper: str | None = None, anchor: str = "command"
) -> str:
    """The table of all sweeps and runs among and below `folders`.

    Args:
        folders: sweep folders, run folders, or folders above them.
        style: text | markdown | csv (plain numbers in base units) | latex (needs booktabs).
        paper: which published table stands beside it (a name of `ssfl.report.paper.TABLES`, or none); None: found
            from the folder's name, else from data set and split; none where they differ between the runs.
        anchor: what the Markdown links to, followed by -NUMBER: unique on a page with several tables.

    Raises:
        RunError: nothing there, damaged files, or an unknown published table.
    """
    if paper is not None and paper not in (*TABLES, "none"):
        raise RunError(f"--paper {paper}: unknown; allowed: {', '.join(TABLES)}, none")
    found = settings(folders)
    table = _guess(found, folders) if paper is None else (None if paper == "none" else paper)
    lines = [_line(i, setting, table) for i, setting in enumerate(found, 1)]
    if style == "csv":
        return _csv(lines)
    notes = _notes(found, table)
    if style == "latex":
        return _latex(lines, notes)
    text = draw(HEAD, [_linked(line, style, anchor) for line in lines], style, None, text_columns=(1, 2, 6))
    return text + "\n" + _below(lines, notes, style, anchor)


def _line(number: int, setting: Setting, table: str | None) -> Line:
    ended = [run.last_evaluation() for run in setting.finished]
    own = [100 * row["client_accuracy_mean"] for row in ended if row.get("client_accuracy_mean") is not None]
    whole = [100 * row["global_accuracy"] for row in ended if row.get("global_accuracy") is not None]
    kept = density(setting.runs[0]) if setting.runs else None
    theirs = _published(setting, table)
    return Line(
        number=number,
        method=setting.label,
        density=kept,
        seeds_finished=len(ended),
        seeds_asked=setting.asked,
        seeds=setting.seeds,
        global_mean=_mean(whole),
        global_std=_std(whole),
        clients_mean=_mean(own),
        clients_std=_std(own),
        has_global_model=bool(whole) if ended else None,
        paper=theirs.accuracy_percent if theirs else None,
        paper_metric=theirs.metric_said if theirs else "",
        paper_source=theirs.source if theirs else "",
        bytes_sent=_mean([run.total_bytes for run in setting.finished]),
        train_flops=_mean([run.total("train_flops") for run in setting.finished]),
        command=setting.command,
    )


def _published(setting: Setting, table: str | None) -> Published | None:
    if table is None or not setting.runs:
        return None
    run = setting.runs[0]
    # Variants of a method that were not published must not borrow its number.
    if (
        run.setting("algorithm.params.fair_budget")
        or run.setting("algorithm.params.method", "ssfl") != "ssfl"
    ):
        return None
    return find(table, setting.method, density(run))


def _guess(found: Sequence[Setting], folders: Sequence[Path]) -> str | None:
    runs = [run for setting in found for run in setting.runs]
    names = {guess_table(flat(run.config), run.folder) for run in runs}
    if not runs:
        names = {guess_table({}, folder) for folder in folders}
    return names.pop() if len(names) == 1 else None


def _notes(found: Sequence[Setting], table: str | None) -> list[str]:
    notes = [
        "global: the global model on the whole test set; clients: mean over clients of their own models on their own"
        " test splits. Mean ± sample standard deviation over the finished seeds; unfinished runs are in no mean.",
    ]
    if table is None:
        return notes
    published = TABLES[table]
    notes.append(f"Paper: {published.title}. Unknown: {'; '.join(published.unknown)}.")
    notes += [
        f"{entry.method} {entry.accuracy_percent:.2f}"
        f"{' (the first author’s port, not the paper)' if entry.by == 'port' else ''}: {entry.metric_why}. "
        f"Source: {entry.source}."
        for entry in published.numbers
    ]
    runs = [run for setting in found for run in setting.runs]
    return notes + _differences(runs, table)


def _differences(runs: Sequence[Run], table: str) -> list[str]:
    """In what these runs are not the published experiment."""
    said = []
    for key, theirs in TABLES[table].settings.items():
        ours = {repr(value): value for run in runs if (value := run.setting(key)) is not None}
        if any(value != theirs for value in ours.values()):
            said.append(f"{key} {'/'.join(map(str, ours.values()))} (paper {theirs})")
    if not said:
        return []
    return [
        f"These runs are not the published experiment, so the columns are not comparable: {'; '.join(said)}."
    ]


def _linked(line: Line, style: Format, anchor: str) -> list[str]:
    cells = line.cells()
    if style == "markdown" and line.command:
        cells[0] = f"[{line.number}](#{anchor}-{line.number})"
    return cells


def _below(lines: Sequence[Line], notes: Sequence[str], style: Format, anchor: str) -> str:
    commands = [line for line in lines if line.command]
    if style == "text":
        text = "".join(f"{line.number:>3}  {line.command}\n" for line in commands)
        return text + "\n" + "".join(f"{note}\n" for note in notes)
    text = "".join(f"- {note}\n" for note in notes) + "\nCommands:\n\n"
    return text + "".join(
        f'- <a id="{anchor}-{line.number}"></a>{line.number}: `{line.command}`\n' for line in commands
    )


def _latex(lines: Sequence[Line], notes: Sequence[str]) -> str:
    rows = [" & ".join(map(_escaped, line.cells())) + r" \\" for line in lines]
    head = " & ".join(map(_escaped, HEAD)) + r" \\"
    begin = [r"\begin{tabular}{rllrrrlrr}", r"\toprule", head, r"\midrule"]
    comments = [f"% {note}" for note in notes]
    comments += [f"% {line.number}: {line.command}" for line in lines if line.command]
    return "\n".join([*comments, *begin, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([%&#_$])", r"\\\1", text).replace("±", r"$\pm$").replace("–", "--")


def _csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return out.getvalue()


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
