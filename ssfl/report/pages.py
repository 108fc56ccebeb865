"""`python -m ssfl.report.pages` writes docs/results.md from the result files committed under experiments/.

For an experiment that was not run, the page has its command and no number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ssfl.report.figures import result_figures, run_figures
from ssfl.report.paper.published import TABLES
from ssfl.report.runs.compact import COMPACT, all_runs
from ssfl.report.runs.labels import density
from ssfl.report.runs.run import Run, RunError
from ssfl.report.runs.settings import settings
from ssfl.report.studies.choice import read_choice
from ssfl.report.studies.definition import STUDY, read_study
from ssfl.report.studies.study import PAGE, short_table
from ssfl.report.tables.paper_table import paper_table
from ssfl.report.write import in_order

STAGES: Mapping[str, str] = {
    "small": "Small: real data, small network, two CPU cores",
    "paper": "At paper scale",
}
HEAD = """\
# Results

Made by `python -m ssfl.report.pages` from the files under `experiments/`; change those, not this page.

There are two accuracies, which must not be compared: *global* is the global model on the whole test set; *clients* is
the mean over clients of each client's own model on its own test split. DisPFL and local training have no global model.
The paper does not say which of the two its table contains: next to each published number is the metric that we assume
(`?` if this is not certain).
"""


def write_results(experiments: Path, docs: Path, draw: bool = True) -> Path:
    """Write docs/results.md and its figures (docs/images/results/*.png). Returns the page's path.

    Args:
        experiments: folders with `results/small/runs.json`, `results/paper/runs.json`
            (`ssfl.report.runs.collect`), or with a `study.json` and its `runs.json`.
        docs: the documentation's folder.
        draw: False: write only the page, which is fast, and keep the figures.

    Raises:
        RunError: there are no experiments, or a file is damaged.
    """
    folders = sorted(path for path in experiments.glob("[!._]*/") if path.is_dir())
    if not folders:
        raise RunError(f"{experiments}: no experiment here (no folder in it)")
    images = docs / "images" / "results"
    text = HEAD + "".join(_section(folder, images, draw) for folder in folders)
    page = docs / "results.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    for figure in images.glob("*.png") if draw else ():  # figures of deleted experiments
        if figure.name not in text:
            figure.unlink()
    return page


def _section(folder: Path, images: Path, draw: bool) -> str:
    name = folder.name
    where = f"[experiments/{name}](../experiments/{name})"
    if name not in TABLES and not (folder / STUDY).is_file():
        return f"\n## {name}\n\nA separate study with its own page: {where}.\n"
    title = TABLES[name].title if name in TABLES else read_study(folder / STUDY).title
    text = f"\n## {title}\n\n{where}\n"
    if (folder / STUDY).is_file():
        text += _study(folder)
    for stage, heading in STAGES.items():
        results = folder / "results" / stage
        if (results / COMPACT).is_file():
            text += f"\n### {heading}\n\n" + _stage(results, name, stage, images, draw)
        elif (folder / f"run_{stage}.sh").is_file():
            text += f"\n### {heading}\n\nNot run yet: `bash experiments/{name}/run_{stage}.sh`.\n"
        if stage == "small" and (folder / "run_small.sh").is_file():
            text += _rates(folder / "lr_small.json")
    return text


def _study(folder: Path) -> str:
    """The table of a study, and a link to its page."""
    text = "\n### Until curves are flat\n\n"
    if not (folder / COMPACT).is_file():
        return text + f"Not run yet: `bash experiments/{folder.name}/run.sh`.\n"
    page = f"../experiments/{folder.name}/{PAGE}"
    study, found = read_study(folder / STUDY), settings([folder / COMPACT])
    table = short_table(study, found) or "No setting has finished all its seeds yet.\n"
    more = "What this says about the claims, every seed, flatness, bytes to an accuracy, learning rates, code and"
    return text + f"{table}\n{more} machines: [results]({page}).\n"


def _stage(results: Path, name: str, stage: str, images: Path, draw: bool) -> str:
    text = paper_table([results], "markdown", name, anchor=f"{name}-{stage}")
    runs = in_order(all_runs([results]))
    for kind, (picture, words) in _pictures(runs).items():
        path = images / f"{name}_{stage}_{kind}.png"
        if draw:
            images.mkdir(parents=True, exist_ok=True)
            picture(runs).savefig(path, dpi=100)
        text += f"\n![{words}](images/results/{path.name})\n"
    return text


def _pictures(runs: Sequence[Run]) -> dict[str, tuple[Callable[[Sequence[Run]], Figure], str]]:
    """The figures that would not be empty."""
    if not any(run.evaluations for run in runs):
        return {}
    found: dict[str, tuple[Callable[[Sequence[Run]], Figure], str]] = {
        "rounds": (run_figures.accuracy_against_rounds, "accuracy against rounds"),
        "bytes": (run_figures.accuracy_against_bytes, "accuracy against bytes"),
        "flops": (result_figures.accuracy_against_flops, "accuracy against training FLOPs"),
        "clients": (run_figures.client_accuracy_spread, "accuracy over clients"),
    }
    if len({density(run) for run in runs if run.finished} - {1.0}) > 1:
        found["sparsity"] = (result_figures.accuracy_against_sparsity, "accuracy against sparsity")
    return found


def _rates(path: Path) -> str:
    """The search for learning rates as a table."""
    if not path.is_file():
        return "\nLearning rates: not tuned yet (`tune_small.sh`).\n"
    return f"\nLearning rates. {read_choice(path).text()}"


def main(words: Sequence[str]) -> int:
    """Arguments: [EXPERIMENTS [DOCS]]; default: those folders of the working directory."""
    experiments = Path(words[0]) if words else Path("experiments")
    docs = Path(words[1]) if len(words) > 1 else Path("docs")
    try:
        print(write_results(experiments, docs))
    except RunError as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
