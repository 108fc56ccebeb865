"""Our numbers and the paper's: mean and standard deviation over seeds, notes on missing runs, commands.

The two accuracies have separate columns and are never mixed: `global` is the global model on the whole test
set, `clients` the mean over clients of each client's own model on its own test split. Next to a
published number is the metric that we assume.
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

from ssfl.report.paper.published import TABLES, Published, find, guess_table
from ssfl.report.runs.copies import copies_note
from ssfl.report.runs.labels import density
from ssfl.report.runs.run import Row, Run, RunError, flat
from ssfl.report.runs.settings import Setting, settings
from ssfl.report.tables.breakdown import OVERALL
from ssfl.report.tables.comparison import VALIDATION
from ssfl.report.tables.grid import draw, without_empty
from ssfl.report.tables.units import Unit, flops_unit, size_unit

Format = Literal["text", "markdown", "csv", "latex"]
ALWAYS = ("", "method", "seeds", "global %", "clients %")
SOMETIMES = ("validation: global %", "clients %", *OVERALL.values(), "paper %", "paper's metric")
"""Columns that appear only if a line has an entry: held-out rows, more metrics, published numbers."""


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
    validation_mean: float | None  # of the global model, on all held-out training rows
    validation_std: float | None
    clients_validation_mean: float | None  # of clients' own models, on their own held-out rows
    clients_validation_std: float | None
    auc_mean: float | None
    auc_std: float | None
    balanced_accuracy_mean: float | None
    balanced_accuracy_std: float | None
    f1_mean: float | None
    f1_std: float | None
    has_global_model: bool | None  # None: not known yet
    paper: float | None
    paper_metric: str
    paper_source: str
    bytes_sent: float | None
    train_flops: float | None
    command: str

    def cells(self, size: Unit, flops: Unit) -> list[str]:
        """The cells as text; bytes and FLOPs in these units."""
        without = "no global model" if self.has_global_model is False else "–"
        return [
            str(self.number),
            self.method,
            self.seeds,
            _spread(self.global_mean, self.global_std) or without,
            _spread(self.clients_mean, self.clients_std) or "–",
            _spread(self.validation_mean, self.validation_std) or "–",
            _spread(self.clients_validation_mean, self.clients_validation_std) or "–",
            _spread(self.auc_mean, self.auc_std) or "–",
            _spread(self.balanced_accuracy_mean, self.balanced_accuracy_std) or "–",
            _spread(self.f1_mean, self.f1_std) or "–",
            "" if self.paper is None else f"{self.paper:.2f}",
            self.paper_metric,
            "" if self.bytes_sent is None else f"{self.bytes_sent / size.scale:,.1f}",
            "" if self.train_flops is None else f"{self.train_flops / flops.scale:,.3g}",
        ]


def paper_table(
    folders: Sequence[Path], style: Format = "text", paper: str | None = None, anchor: str = "command"
) -> str:
    """The table of all sweeps and runs in `folders`.

    Args:
        folders: sweep folders, run folders, or folders above them.
        style: text | markdown | csv (plain numbers in base units) | latex (needs booktabs).
        paper: the published table to compare with (a name of `ssfl.report.paper.TABLES`, or none); None: found
            from the folder's name, else from data set and split; none if they differ between the runs.
        anchor: prefix of the Markdown anchors (followed by -NUMBER); must be unique on a page with several tables.

    Raises:
        RunError: no runs, damaged files, or an unknown published table.
    """
    if paper is not None and paper not in (*TABLES, "none"):
        raise RunError(f"--paper {paper}: unknown; allowed: {', '.join(TABLES)}, none")
    found = settings(folders)
    table = _guess(found, folders) if paper is None else (None if paper == "none" else paper)
    lines = [_line(i, setting, table) for i, setting in enumerate(found, 1)]
    if style == "csv":
        return _csv(lines)
    notes = _notes(found, table)
    head, cells = _grid(lines)
    if style == "latex":
        return _latex(lines, head, cells, notes)
    if style == "markdown":
        for line, row in zip(lines, cells, strict=True):
            row[0] = f"[{line.number}](#{anchor}-{line.number})" if line.command else row[0]
    text = draw(head, cells, style, None, _text_columns(head))
    return text + "\n" + _below(lines, notes, style, anchor)


def _line(number: int, setting: Setting, table: str | None) -> Line:
    ended = [run.last_evaluation() for run in setting.finished]
    own, whole = _percents(ended, "client_accuracy_mean"), _percents(ended, "global_accuracy")
    held, own_held = (_percents(ended, name) for name in VALIDATION)
    auc, balanced, f1 = (_percents(ended, name) for name in OVERALL)
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
        validation_mean=_mean(held),
        validation_std=_std(held),
        clients_validation_mean=_mean(own_held),
        clients_validation_std=_std(own_held),
        auc_mean=_mean(auc),
        auc_std=_std(auc),
        balanced_accuracy_mean=_mean(balanced),
        balanced_accuracy_std=_std(balanced),
        f1_mean=_mean(f1),
        f1_std=_std(f1),
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
    # Variants of a method that were not published must not get its number.
    if (
        run.setting("algorithm.params.fair_budget")
        or run.setting("algorithm.params.method", "ssfl") != "ssfl"
        or not _exact(run)
    ):
        return None
    return find(table, setting.method, density(run))


def _exact(run: Run) -> bool:
    """Whether values and scores were sent without loss, as in the published runs."""
    single = [run.setting(f"communication.{name}", "auto") for name in ("uplink", "downlink", "scores")]
    return run.setting("communication.profile", "exact") == "exact" and {*single} <= {
        "auto",
        "fp32",
        "lossless",
    }


def _guess(found: Sequence[Setting], folders: Sequence[Path]) -> str | None:
    runs = [run for setting in found for run in setting.runs]
    names = {guess_table(flat(run.config), run.folder) for run in runs}
    if not runs:
        names = {guess_table({}, folder) for folder in folders}
    return names.pop() if len(names) == 1 else None


def _notes(found: Sequence[Setting], table: str | None) -> list[str]:
    notes = [
        "global: the global model on the whole test set; clients: mean over clients of their own models on their own"
        " test splits. Mean ± sample standard deviation over the finished seeds; unfinished runs are not included.",
    ]
    notes += code_notes([run for setting in found for run in setting.runs])
    notes += copies_note([path for setting in found for path in setting.copies])
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


def code_notes(runs: Sequence[Run]) -> list[str]:
    """A note with the code versions of the runs, if there are several."""
    versions = sorted({run.code or "unknown" for run in runs})
    if len(versions) < 2:
        return []
    return [
        f"These runs were made by {len(versions)} versions of the code ({', '.join(versions)}). A row that"
        " averages several versions names them, and a difference between two versions may be a difference of code."
    ]


def _differences(runs: Sequence[Run], table: str) -> list[str]:
    """A note with the settings in which these runs differ from the published experiment."""
    differences = []
    for key, theirs in TABLES[table].settings.items():
        ours = {repr(value): value for run in runs if (value := run.setting(key)) is not None}
        if any(value != theirs for value in ours.values()):
            differences.append(f"{key} {'/'.join(map(str, ours.values()))} (paper {theirs})")
    if not differences:
        return []
    return [
        f"These runs are not the published experiment, so the columns are not comparable: {'; '.join(differences)}."
    ]


def _grid(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and cells without empty columns."""
    size, flops = (
        size_unit([line.bytes_sent for line in lines]),
        flops_unit([line.train_flops for line in lines]),
    )
    head = [*ALWAYS, *SOMETIMES, f"{size.name} sent", flops.name]
    optional = range(len(ALWAYS), len(ALWAYS) + len(SOMETIMES))
    return without_empty(head, [line.cells(size, flops) for line in lines], optional)


def _text_columns(head: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(head) if name in ("method", "seeds", "paper's metric"))


def _below(lines: Sequence[Line], notes: Sequence[str], style: Format, anchor: str) -> str:
    commands = [line for line in lines if line.command]
    if style == "text":
        text = "".join(f"{line.number:>3}  {line.command}\n" for line in commands)
        return text + "\n" + "".join(f"{note}\n" for note in notes)
    text = "".join(f"- {note}\n" for note in notes) + "\nCommands:\n\n"
    return text + "".join(
        f'- <a id="{anchor}-{line.number}"></a>{line.number}: `{line.command}`\n' for line in commands
    )


def _latex(
    lines: Sequence[Line], head: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    rows = [" & ".join(map(_escaped, line)) + r" \\" for line in cells]
    left = _text_columns(head)
    columns = "".join("l" if i in left else "r" for i in range(len(head)))
    names = " & ".join(map(_escaped, head)) + r" \\"
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", names, r"\midrule"]
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


def _percents(rows: Sequence[Row], name: str) -> list[float]:
    """A field (0-1) of the last evaluations in percent, of those rows that have it."""
    return [100 * row[name] for row in rows if row.get(name) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")
