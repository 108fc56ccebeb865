"""The page of a study: what can be said about its claims, accuracies, whether every curve is flat, bytes, rates.

`python -m ssfl.report.studies.study EXPERIMENT...` reads EXPERIMENT/runs.json (`ssfl.report.runs.collect`), the records
of its searches (lr*.json) and EXPERIMENT/study.json (`ssfl.report.studies.definition`). It writes EXPERIMENT/results.md
with its figures. No number on such a page is written by hand. `... --insert EXPERIMENT PAGE` writes its tables between
the marks `<!-- table of EXPERIMENT -->` (or `claims of`, `paper's claims of`) and `<!-- end of table -->` of a page.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssfl.report.runs.compact import COMPACT
from ssfl.report.runs.run import RunError
from ssfl.report.runs.settings import Setting, settings
from ssfl.report.studies.bytes_until import adverse, byte_differences_table, bytes_table, short, short_adverse
from ssfl.report.studies.choice import read_choice
from ssfl.report.studies.claims import RULE, claims_table, papers_claims, short_claims
from ssfl.report.studies.complete import (
    accuracies_of,
    complete,
    finished,
    flat_accuracies,
    lengths,
    shown,
    spread,
)
from ssfl.report.studies.definition import NAMES, STUDY, Selector, Study, ambiguous, read_study
from ssfl.report.studies.flatness import LIMIT, late_accuracy, setting_flatness
from ssfl.report.studies.length import length_notes
from ssfl.report.studies.versions import Versions, versions_of
from ssfl.report.tables.grid import draw

PAGE = "results.md"
END = "<!-- end of table -->"
HEAD = (
    *("method", "density", "lr", "seeds", "global %", "clients %", "last tenth", "MB sent", "TFLOPs"),
    "code",
)
SHORT = ("method", "density", "global %", "clients %", "MB sent")


def write_study(folder: Path, pictures: bool = True) -> Path:
    """Write the page of the experiment in `folder`; returns its path. The page names unfinished settings."""
    study, found = read_study(folder / STUDY), settings([folder / COMPACT])
    parts = [
        f"# {study.title}\n",
        "Made by `python -m ssfl.report.studies.study` from [runs.json](runs.json) and [study.json](study.json).\n",
        _missing(study, found),
        f"## What can be said\n\n{claims_section(study, found, claims_table(study, found))}",
        f"## Accuracies\n\n{results_table(study, found)}",
        "\n".join(_notes(study, found)),
        _bytes(study, found),
        _pictures(folder, study, found, pictures),
        f"## Learning rates\n{rates_section(folder)}",
        "## Commands\n",
        "\n".join(f"- {s.label}: `{s.command}`" for s in found if s.finished and s.command) + "\n",
    ]
    page = folder / PAGE
    page.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return page


def claims_section(study: Study, found: Sequence[Setting], table: str) -> str:
    """A table of claims with the adverse results and the rule of its conclusions below."""
    against = "\n".join(f"{line}\n" for line in adverse(study, found))
    return "\n".join(part for part in (table, against, RULE) if part)


def results_table(study: Study, found: Sequence[Setting]) -> str:
    """Both accuracies, flatness, bytes (including one-off phases) and FLOPs of every complete setting."""
    versions = versions_of(found)
    rows = [_row(selector, s, versions) for selector, s in complete(study, found)]
    return draw(HEAD, rows, "markdown", None, (0, len(HEAD) - 1))


def short_table(study: Study, found: Sequence[Setting]) -> str:
    """Both accuracies and the bytes of every complete setting; "" if there is none."""
    versions = versions_of(found)
    rows = [_row(selector, setting, versions) for selector, setting in complete(study, found)]
    cells = [[row[HEAD.index(name)] for name in SHORT] for row in rows]
    return draw(SHORT, cells, "markdown", None, (0,)) if rows else ""


def insert_tables(folder: Path, page: Path) -> None:
    """Write the short tables between their marks in a Markdown page. Raises RunError if the page has no such marks."""
    study, found = read_study(folder / STUDY), settings([folder / COMPACT])
    tables = {
        "table": short_table(study, found),
        "claims": claims_section(study, found, short_claims(study, found)),
        "paper's claims": f"{papers_claims(study, found)}\n{short_adverse(study, found)}".strip() + "\n",
    }
    text = page.read_text(encoding="utf-8")
    marks = {f"<!-- {name} of {folder.name} -->\n": table for name, table in tables.items()}
    there = [mark for mark in marks if END in text.partition(mark)[2]]
    if not there:
        raise RunError(f"{page}: needs a line {' or '.join(map(str.strip, marks))}, and a line {END} below")
    for mark in there:
        before, _, rest = text.partition(mark)
        text = before + mark + marks[mark] + END + rest.partition(END)[2]
    page.write_text(text, encoding="utf-8")


def rates_section(folder: Path) -> str:
    """The records of the searches for learning rates; a line if there is none."""
    choices = [read_choice(path) for path in sorted(folder.glob("lr*.json"))]
    if not choices:
        return "\nNot chosen yet (`tune.sh`).\n"
    return "".join(f"\n{choice.text()}" for choice in choices)


def _row(selector: Selector, setting: Setting, versions: Versions) -> list[str]:
    runs = setting.finished
    gains = [setting_flatness(setting, name) for name in NAMES]
    return [
        selector.method,
        f"{selector.density:g}",
        str(runs[0].setting("optimizer.lr", "")),
        str(len(runs)),
        *(shown(setting, name) for name in NAMES),
        " / ".join(str(gain) for gain in gains if gain is not None) or "–",
        short(statistics.fmean(run.total_bytes for run in runs) / 1e6),
        short(statistics.fmean(run.total("train_flops") for run in runs) / 1e12),
        versions.of(setting),
    ]


def _missing(study: Study, found: Sequence[Setting]) -> str:
    done, several = {selector for selector, _ in finished(study, found)}, ambiguous(study, found)
    absent = [str(selector) for selector in study.order if selector not in done and selector not in several]
    text = f"**Not finished yet, so not in the tables below:** {'; '.join(absent)}.\n" if absent else ""
    rising = [line for selector, s in finished(study, found) if (line := _rising(selector, s))]
    if rising:
        text += (
            "\n**Finished, but not flat by the rule (or of different lengths), so not in the tables below:**"
            f" {'; '.join(rising)}.\n"
        )
    if several:
        named = [f"{selector} ({' | '.join(s.label for s in each)})" for selector, each in several.items()]
        text += (
            "\n**Run in several ways, so not in the tables below until study.json names one** (for example"
            f' `["SSFL", 0.5, {{"optimizer.lr": 0.1}}]`): {"; ".join(named)}.\n'
        )
    return text


def _rising(selector: Selector, setting: Setting) -> str:
    """The accuracies of a finished setting that are not flat; "" if there is none."""
    flat, parts = flat_accuracies(setting), []
    for name in accuracies_of(setting):
        if name not in flat:
            gain, value = setting_flatness(setting, name), spread(setting, name)
            said = "not evaluated" if gain is None else f"{100 * gain.gain:+.2f} points"
            parts.append(f"{NAMES[name]} {value} %, last tenth {said}")
    rounds = lengths(setting)
    several = f"; runs of {' and '.join(map(str, rounds))} rounds" if len(rounds) > 1 else ""
    return f"{selector} ({', '.join(parts)}{several})" if parts else ""


def _notes(study: Study, found: Sequence[Setting]) -> list[str]:
    paragraphs = [
        "A run's result is the mean of its evaluations in the last tenth of the rounds (of FedAvg-FT's clients, after"
        " fine-tuning). Mean ± sample standard deviation over seeds. *MB sent*: down, up and between clients, including"
        " one-off scoring and masks.",
        "*last tenth*: the gain of the mean curve in the last tenth of the rounds over the tenth before, in points,"
        f" global / clients. A curve is flat if it is less than {100 * LIMIT:g}; an accuracy that is not flat is not"
        " given, and in no claim.",
        *length_notes(study, found),
        "*code*: the code and the machine that made the runs. A row with several letters averages over them, and a"
        " difference between rows of different letters may be a difference of code or machine. Minutes are wall time,"
        " with pauses.",
    ]
    return ["", "\n\n".join(paragraphs), "", *versions_of(found).legend(), ""]


def _bytes(study: Study, found: Sequence[Setting]) -> str:
    every = sorted({run.setting("training.frequency_of_the_test", 1) for s in found for run in s.finished})
    text = (
        "## Bytes to an accuracy\n\n*MB once*: scoring and masks before the first round; included in the rest. Runs"
        f" are tested every {' or '.join(map(str, every))} rounds, so other bytes are known to that many rounds."
        " Differences are paired by seed.\n"
    )
    tables = [*(bytes_table(study, found, name) for name in NAMES), byte_differences_table(study, found)]
    return text + "".join(f"\n{table}" for table in tables if table)


def _pictures(folder: Path, study: Study, found: Sequence[Setting], pictures: bool) -> str:
    from ssfl.report.figures import result_figures, run_figures  # matplotlib

    pairs = [(selector.method, run) for selector, s in complete(study, found) for run in s.finished]
    if not pairs:
        return ""
    names, runs = zip(*pairs)
    drawn: Mapping[str, tuple[Callable[[], Any], str]] = {
        "rounds": (lambda: run_figures.accuracy_against_rounds(runs), "Accuracy against rounds"),
        "bytes": (lambda: run_figures.accuracy_against_bytes(runs), "Accuracy against bytes"),
        "sparsity": (
            lambda: result_figures.accuracy_against_sparsity(runs, names, late_accuracy),
            "Accuracy against sparsity",
        ),
    }
    text = "\n## Curves\n"
    for name, (picture, words) in drawn.items():
        if pictures:
            picture().savefig(folder / f"{name}.png", dpi=100)
        text += f"\n![{words}]({name}.png)\n"
    return text


def main(words: Sequence[str]) -> int:
    """Arguments: EXPERIMENT..., or --insert EXPERIMENT PAGE."""
    try:
        match list(words):
            case ["--insert", folder, page]:
                insert_tables(Path(folder), Path(page))
            case [_, *_] if not any(word.startswith("-") for word in words):
                for word in words:
                    print(write_study(Path(word)))
            case _:
                print(
                    "usage: python -m ssfl.report.studies.study EXPERIMENT... | --insert EXPERIMENT PAGE",
                    file=sys.stderr,
                )
                return 2
    except RunError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
