"""The page of a study: its table, whether every curve is flat, differences paired by seed, accuracy against bytes.

`python -m ssfl.report.studies.study EXPERIMENT...` reads EXPERIMENT/runs.json (`ssfl.report.runs.collect`) and
EXPERIMENT/study.json (title, order of the settings, comparisons) and writes EXPERIMENT/results.md with its figures.
No number on such a page is written by hand. `... --table EXPERIMENT PAGE` writes a short table between the marks
`<!-- table of EXPERIMENT -->` and `<!-- end of table -->` of a Markdown page.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, final

from ssfl.report.runs.compact import COMPACT
from ssfl.report.runs.labels import density
from ssfl.report.runs.run import Run, RunError
from ssfl.report.runs.settings import Setting, settings
from ssfl.report.studies.flatness import LIMIT, Flatness, late_accuracy, setting_flatness
from ssfl.report.studies.paired import LEVEL, Difference, paired
from ssfl.report.tables.grid import draw
from ssfl.report.tables.paper_table import code_notes

STUDY = "study.json"
PAGE = "results.md"
Accuracy = Literal["global_accuracy", "client_accuracy_mean"]
NAMES: Mapping[Accuracy, str] = {"global_accuracy": "global", "client_accuracy_mean": "clients"}
HEAD = ("method", "density", "lr", "seeds", "global %", "clients %", "last tenth", "MB sent", "TFLOPs")


@final
@dataclass(frozen=True)
class Selector:
    """A setting by method and density."""

    method: str
    density: float

    def __str__(self) -> str:
        return self.method + (f" at {self.density:g}" if self.density != 1 else "")

    def find(self, found: Sequence[Setting]) -> Setting | None:
        """The setting of this method and density; None if it was not run."""
        those = [
            s for s in found if s.runs and s.method == self.method and density(s.runs[0]) == self.density
        ]
        return those[0] if len(those) == 1 else None


@final
@dataclass(frozen=True)
class Comparison:
    """A claim about two settings, first minus second."""

    claim: str
    first: Selector
    second: Selector
    accuracies: tuple[Accuracy, ...]


@final
@dataclass(frozen=True)
class Study:
    """The content of study.json."""

    title: str
    order: tuple[Selector, ...]
    """All settings of the study, in the order of its table."""
    comparisons: tuple[Comparison, ...]
    thresholds: tuple[float, ...]
    """Global accuracies (0-1) up to which bytes are counted."""


def read_study(path: Path) -> Study:
    """Read a study.json. Raises RunError if it is damaged."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Study(
            stored["title"],
            tuple(Selector(*entry) for entry in stored["settings"]),
            tuple(
                Comparison(c["claim"], Selector(*c["first"]), Selector(*c["second"]), tuple(c["accuracies"]))
                for c in stored["comparisons"]
            ),
            tuple(stored["thresholds"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read as a study ({error})") from None


def write_study(folder: Path, pictures: bool = True) -> Path:
    """Write the page of the experiment in `folder`; returns its path. The page names unfinished settings."""
    study, found = read_study(folder / STUDY), settings([folder / COMPACT])
    parts = [
        f"# {study.title}\n",
        "Made by `python -m ssfl.report.studies.study` from [runs.json](runs.json) and [study.json](study.json).\n",
        _missing(study, found),
        results_table(study, found),
        "\n".join(["", *_notes(found)]),
        "## Differences, paired by seed\n",
        differences_table(study, found),
        "\n## Bytes to an accuracy\n",
        bytes_table(study, found),
        _pictures(folder, found, pictures),
        "\n## Commands\n",
        "\n".join(f"- {s.label}: `{s.command}`" for s in found if s.finished and s.command) + "\n",
    ]
    page = folder / PAGE
    page.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return page


def finished(study: Study, found: Sequence[Setting]) -> list[tuple[Selector, Setting]]:
    """The settings whose seeds all finished, in the study's order."""
    pairs = [(selector, selector.find(found)) for selector in study.order]
    return [(selector, s) for selector, s in pairs if s is not None and len(s.finished) == s.asked]


def complete(study: Study, found: Sequence[Setting]) -> list[tuple[Selector, Setting]]:
    """The finished settings whose curves are flat; only these are in the tables."""
    return [(selector, setting) for selector, setting in finished(study, found) if is_flat(setting)]


def is_flat(setting: Setting) -> bool:
    """Whether the curves of all accuracies that the method has are flat."""
    gains = [setting_flatness(setting, name) for name in NAMES]
    return all(gain.flat for gain in gains if gain is not None)


def results_table(study: Study, found: Sequence[Setting]) -> str:
    """Both accuracies, flatness, bytes (including one-off phases) and FLOPs of every complete setting."""
    return draw(HEAD, [_row(selector, s) for selector, s in complete(study, found)], "markdown", None, (0,))


def short_table(folder: Path) -> str:
    """Both accuracies and the bytes of every complete setting of the experiment in `folder`; "" if there is none."""
    if not (folder / COMPACT).is_file():
        return ""
    study, found = read_study(folder / STUDY), settings([folder / COMPACT])
    rows = [_row(selector, setting) for selector, setting in complete(study, found)]
    chosen = [HEAD.index(name) for name in ("method", "density", "global %", "clients %", "MB sent")]
    cells = [[row[i] for i in chosen] for row in rows]
    return draw([HEAD[i] for i in chosen], cells, "markdown", None, (0,)) if rows else ""


def insert_table(folder: Path, page: Path) -> None:
    """Write the short table between its marks in a Markdown page. Raises RunError if the page has no such marks."""
    text, begin, end = (
        page.read_text(encoding="utf-8"),
        f"<!-- table of {folder.name} -->\n",
        "<!-- end of table -->",
    )
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise RunError(f"{page}: needs lines {begin.strip()} and {end} for the table")
    page.write_text(before + begin + short_table(folder) + end + after, encoding="utf-8")


def _row(selector: Selector, setting: Setting) -> list[str]:
    runs = setting.finished
    gains = [setting_flatness(setting, name) for name in NAMES]
    return [
        selector.method,
        f"{selector.density:g}",
        str(runs[0].setting("optimizer.lr", "")),
        str(len(runs)),
        spread(setting, "global_accuracy") or "none",
        spread(setting, "client_accuracy_mean"),
        " / ".join(_gain(g) for g in gains if g is not None) or "–",
        short(statistics.fmean(run.total_bytes for run in runs) / 1e6),
        short(statistics.fmean(run.total("train_flops") for run in runs) / 1e12),
    ]


def short(value: float) -> str:
    """At least three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gain(gain: Flatness) -> str:
    return str(gain)


def spread(setting: Setting, accuracy: Accuracy) -> str:
    """Mean ± sample standard deviation over the finished seeds, in percent; "" if there is none."""
    values = [100 * v for run in setting.finished if (v := late_accuracy(run, accuracy)) is not None]
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def differences_table(study: Study, found: Sequence[Setting]) -> str:
    """Each comparison's difference in points with its confidence interval, per seed, and the verdict."""
    done = {str(selector): setting for selector, setting in complete(study, found)}
    rows = []
    for comparison in study.comparisons:
        first, second = done.get(str(comparison.first)), done.get(str(comparison.second))
        for accuracy in comparison.accuracies:
            gap = paired(first, second, accuracy) if first and second else None
            if gap is not None:
                seeds = ", ".join(f"{100 * value:+.1f}" for value in gap.by_seed.values())
                pair = f"{comparison.first} − {comparison.second}"
                rows.append([comparison.claim, pair, NAMES[accuracy], str(gap), seeds, verdict(gap)])
    head = ["claim", "difference", "accuracy", f"points [{100 * LEVEL:g} % interval]", "by seed", "shown"]
    return draw(head, rows, "markdown", None, text_columns=(0, 1, 2, 5))


def verdict(gap: Difference) -> str:
    """The conclusion from an interval; no difference if it includes 0."""
    if gap.half_width is None:
        return "one seed: nothing"
    if not gap.excludes_zero:
        return "no difference"
    return "above" if gap.mean > 0 else "below"


def bytes_table(study: Study, found: Sequence[Setting]) -> str:
    """Megabytes until a run's global accuracy first reaches each threshold; mean over seeds if all reach it."""
    rows = []
    for selector, setting in complete(study, found):
        reached = [[megabytes_until(run, level) for run in setting.finished] for level in study.thresholds]
        if any(row.get("global_accuracy") is not None for run in setting.finished for row in run.evaluations):
            rows.append([str(selector), *map(_mean_of_all, reached)])
    head = ["setting", *(f"MB to {100 * level:g} %" for level in study.thresholds)]
    return draw(head, rows, "markdown", None, text_columns=(0,))


def megabytes_until(run: Run, level: float) -> float | None:
    """Megabytes sent until the first evaluation with that global accuracy (0-1), including one-off phases."""
    fields = ("downlink_bytes", "uplink_bytes", "peer_bytes")
    sent = accumulate(sum(row.get(name) or 0 for name in fields) / 1e6 for row in run.exchanges)
    for total, row in zip(sent, run.exchanges):
        if (row.get("global_accuracy") or 0.0) >= level:
            return total
    return None


def _mean_of_all(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return short(statistics.fmean(known)) if known and len(known) == len(values) else "not reached"


def _missing(study: Study, found: Sequence[Setting]) -> str:
    done = {str(selector) for selector, _ in finished(study, found)}
    absent = [str(selector) for selector in study.order if str(selector) not in done]
    text = f"**Not finished yet, so not in the tables below:** {'; '.join(absent)}.\n" if absent else ""
    rising = [_rising(selector, s) for selector, s in finished(study, found) if not is_flat(s)]
    if rising:
        text += (
            f"\n**Finished, but not flat by the rule, so not in the tables below:** {'; '.join(rising)}.\n"
        )
    return text


def _rising(selector: Selector, setting: Setting) -> str:
    gains = [
        f"{NAMES[name]} {g} points" for name in NAMES if (g := setting_flatness(setting, name)) is not None
    ]
    values = [f"{NAMES[name]} {value} %" for name in NAMES if (value := spread(setting, name))]
    return f"{selector} ({', '.join(values)}; last tenth {', '.join(gains)})"


def _notes(found: Sequence[Setting]) -> list[str]:
    runs = [run for setting in found for run in setting.finished]
    versions = code_notes(runs) or [f"Code: {run.code}." for run in runs[:1]]
    commits = sorted({str((run.environment.get("code") or {}).get("commit")) for run in runs})
    sets = sorted({str(run.environment.get("instruction_set")) for run in runs})
    return [
        "*global*: the global model on the whole test set; *clients*: the mean over clients of each client's last"
        " trained model on its own test split; do not compare the two. A run's result is the mean of its evaluations in"
        " the last tenth of the rounds (of FedAvg-FT's clients, after fine-tuning). Mean ± sample standard deviation"
        " over seeds."
        " *MB sent*: down, up and between clients, including one-off scoring and masks.",
        "",
        "*last tenth*: the gain of the mean curve in the last tenth of the rounds over the tenth before, in points,"
        f" global / clients. A curve is flat if it is less than {100 * LIMIT:g}; other settings are in no table.",
        "",
        f"{versions[0]} Commit {', '.join(commits)}; instruction set {', '.join(sets)}.",
        "",
    ]


def _pictures(folder: Path, found: Sequence[Setting], pictures: bool) -> str:
    from ssfl.report.figures import result_figures, run_figures  # matplotlib

    runs = [run for setting in found if len(setting.finished) == setting.asked for run in setting.finished]
    if not runs:
        return ""
    drawn: Mapping[str, tuple[Callable[[Sequence[Run]], Any], str]] = {
        "rounds": (run_figures.accuracy_against_rounds, "Accuracy against rounds"),
        "bytes": (run_figures.accuracy_against_bytes, "Accuracy against bytes"),
        "sparsity": (result_figures.accuracy_against_sparsity, "Accuracy against sparsity"),
    }
    text = "\n## Curves\n"
    for name, (picture, words) in drawn.items():
        if pictures:
            picture(runs).savefig(folder / f"{name}.png", dpi=100)
        text += f"\n![{words}]({name}.png)\n"
    return text


def main(words: Sequence[str]) -> int:
    """Arguments: EXPERIMENT..., or --table EXPERIMENT PAGE."""
    try:
        match list(words):
            case ["--table", folder, page]:
                insert_table(Path(folder), Path(page))
            case [_, *_] if not any(word.startswith("-") for word in words):
                for word in words:
                    print(write_study(Path(word)))
            case _:
                print(
                    "usage: python -m ssfl.report.studies.study EXPERIMENT... | --table EXPERIMENT PAGE",
                    file=sys.stderr,
                )
                return 2
    except RunError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
