"""docs/results.md, whole, from the result files committed under experiments/: `python -m ssfl.report.results`.

An experiment that was not run has its command there and no number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ssfl.report import plots, results_plots
from ssfl.report.cells import SWEEP
from ssfl.report.labels import density
from ssfl.report.paper import TABLES
from ssfl.report.runs import Run, RunError, load_runs
from ssfl.report.table import paper_table
from ssfl.report.write import in_order

STAGES: Mapping[str, str] = {
    "small": "Small: real data, small network, two CPU cores",
    "paper": "At paper scale",
}
HEAD = """\
# Results

Made by `python -m ssfl.report.results` from the files under `experiments/`; change those, not this page.

Two accuracies, never mixed: *global* is the global model on the whole test set; *clients* is the mean over clients of
each client's own model on its own test split. DisPFL and local training have no global model. The paper does not say
which of the two its table holds: each published number stands with the metric it is believed to be (`?` where that is
not certain).
"""


def write_results(experiments: Path, docs: Path, draw: bool = True) -> Path:
    """Write docs/results.md and its pictures (docs/images/results/*.png); gives the page's path.

    Args:
        experiments: folders with `results/small` and `results/paper` as `ssfl.report.collect` leaves them.
        docs: the documentation's folder.
        draw: False leaves the pictures as they are and writes the page alone, which is quick.

    Raises:
        RunError: there are no experiments, or their files are damaged.
    """
    folders = sorted(path for path in experiments.glob("[!._]*/") if path.is_dir())
    if not folders:
        raise RunError(f"{experiments}: no experiment here (no folder in it)")
    images = docs / "images" / "results"
    for old in images.glob("*.png") if draw else ():  # none of an experiment that is gone
        old.unlink()
    sections = [_section(folder, images, draw) for folder in folders]
    page = docs / "results.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(HEAD + "".join(sections), encoding="utf-8")
    return page


def _section(folder: Path, images: Path, draw: bool) -> str:
    name = folder.name
    where = f"[experiments/{name}](../experiments/{name})"
    if name not in TABLES:
        return f"\n## {name}\n\nA study of our own, with a page of its own: {where}.\n"
    text = f"\n## {TABLES[name].title}\n\n{where}\n"
    for stage, heading in STAGES.items():
        text += f"\n### {heading}\n\n"
        results = folder / "results" / stage
        if (results / SWEEP).is_file():
            text += _stage(results, name, stage, images, draw)
        else:
            text += f"Not run yet: `bash experiments/{name}/run_{stage}.sh`.\n"
        if stage == "small":
            text += _rates(folder / "lr_small.json")
    return text


def _stage(results: Path, name: str, stage: str, images: Path, draw: bool) -> str:
    text = paper_table([results], "markdown", name, anchor=f"{name}-{stage}")
    runs = in_order(load_runs([results])) if any(results.glob("runs/*/*/metrics.jsonl")) else []
    for kind, (picture, words) in _pictures(runs).items():
        path = images / f"{name}_{stage}_{kind}.png"
        if draw:
            images.mkdir(parents=True, exist_ok=True)
            picture(runs).savefig(path, dpi=100)
        text += f"\n![{words}](images/results/{path.name})\n"
    return text


def _pictures(runs: Sequence[Run]) -> dict[str, tuple[Callable[[Sequence[Run]], Figure], str]]:
    """Those that would not be empty."""
    if not any(run.evaluations for run in runs):
        return {}
    found: dict[str, tuple[Callable[[Sequence[Run]], Figure], str]] = {
        "rounds": (plots.accuracy_against_rounds, "accuracy against rounds"),
        "bytes": (plots.accuracy_against_bytes, "accuracy against bytes"),
        "flops": (results_plots.accuracy_against_flops, "accuracy against training FLOPs"),
        "clients": (plots.client_accuracy_spread, "accuracy over clients"),
    }
    if len({density(run) for run in runs if run.finished} - {1.0}) > 1:
        found["sparsity"] = (results_plots.accuracy_against_sparsity, "accuracy against sparsity")
    return found


def _rates(path: Path) -> str:
    """The search for learning rates as a table."""
    if not path.is_file():
        return "\nLearning rates: not tuned yet (`tune_small.sh`).\n"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    text = f"\nLearning rates. Chosen by: {found['criterion']}.\n\n"
    text += "| method | lr | global % | clients % | chosen |\n| :-- | --: | --: | --: | :-- |\n"
    for trial in found["trials"]:
        chosen = "yes" if found["chosen"][trial["method"]] == trial["lr"] else ""
        numbers = " | ".join(_percent(trial[key]) for key in ("global_accuracy", "client_accuracy_mean"))
        text += f"| {trial['method']} | {trial['lr']:g} | {numbers} | {chosen} |\n"
    return text


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def main(words: Sequence[str]) -> int:
    """[EXPERIMENTS [DOCS]], by default those of the working directory."""
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
