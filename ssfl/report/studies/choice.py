"""One value of a key per setting, by validation accuracy: the trials of a sweep, the best, and a record of both.

`ssfl sweep --choose KEY --by METRIC` runs the trials and writes the record, `choice.json`; this module reads the runs
and chooses. `python -m ssfl.report.studies.choice FILE SETTING` prints a chosen value for a script.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, final

from ssfl.report.runs.labels import method
from ssfl.report.runs.run import Run, RunError
from ssfl.report.studies.flatness import LIMIT

CHOICE = "choice.json"
By = Literal[
    "validation_accuracy", "client_validation_accuracy", "validation_auc", "validation_balanced_accuracy"
]
METRICS: Mapping[By, tuple[str, ...]] = {
    "validation_accuracy": ("global_validation_accuracy", "client_validation_accuracy_mean"),
    "client_validation_accuracy": ("client_validation_accuracy_mean",),
    "validation_auc": ("global_validation_auc",),
    "validation_balanced_accuracy": ("global_validation_balanced_accuracy",),
}
"""Each rule's fields of the last evaluation; the first one that a method has is used. No test accuracies."""
RULES: Mapping[By, str] = {
    "validation_accuracy": "highest accuracy on held-out training rows after the last round: of the global model on"
    " all of them, or (methods without one) the mean over clients of their own models on their own",
    "client_validation_accuracy": "highest mean over clients of their own models' accuracy on their own held-out"
    " training rows after the last round",
    "validation_auc": "highest macro AUC of the global model on held-out training rows after the last round",
    "validation_balanced_accuracy": "highest balanced accuracy of the global model on held-out training rows after"
    " the last round",
}
IMBALANCED: tuple[By, ...] = ("validation_auc", "validation_balanced_accuracy")
"""Rules that need `tracking.metrics=imbalanced`."""


@final
@dataclass(frozen=True)
class Trial:
    """One value of the key in one setting."""

    setting: str
    """The arguments that distinguish settings, without the key and the seed."""
    method: str
    value: float | str
    score: float | None
    """Mean over the seeds (0-1); None if a run diverged or failed."""
    seeds: int
    rounds: int


@final
@dataclass(frozen=True)
class Choice:
    """The trials and the chosen values."""

    key: str
    by: str
    rule: str
    trials: tuple[Trial, ...]

    def best(self) -> dict[str, Trial]:
        """The trial with the highest score of each setting (the first of equals); omits settings without a score."""
        best: dict[str, Trial] = {}
        for trial in self.trials:
            known = best.get(trial.setting)
            if trial.score is not None and (known is None or trial.score > (known.score or 0.0)):
                best[trial.setting] = trial
        return best

    def settings(self) -> list[str]:
        """Every setting that was searched, in order."""
        return list(dict.fromkeys(trial.setting for trial in self.trials))

    def table(self) -> str:
        """Markdown: one line per trial, chosen ones marked."""
        best = self.best()
        name = self.key.rpartition(".")[2]
        text = f"| setting | {name} | {self.by.replace('_', ' ')} % | chosen |\n| :-- | --: | --: | :-- |\n"
        for trial in self.trials:
            score = "did not finish" if trial.score is None else f"{100 * trial.score:.2f}"
            mark = "yes" if best.get(trial.setting) is trial else ""
            text += f"| {trial.setting or trial.method} | {trial.value} | {score} | {mark} |\n"
        return text

    def text(self) -> str:
        """Markdown: the rule, the trials, and the close choices."""
        return f"Chosen by: {self.rule}.\n\n{self.table()}{self.close_calls()}"

    def close_calls(self, limit: float = LIMIT) -> str:
        """A paragraph with the choices that another value missed by less than `limit` (0-1); "" if there is none."""
        calls = []
        for setting, best in self.best().items():
            others = [
                t for t in self.trials if t.setting == setting and t is not best and t.score is not None
            ]
            second = max(others, key=lambda trial: trial.score or 0.0, default=None)
            if second is not None and (gap := (best.score or 0.0) - (second.score or 0.0)) < limit:
                name = setting or best.method
                calls.append(f"{name}: {best.value} over {second.value} by {100 * gap:.2f}")
        if not calls:
            return ""
        seeds = "; ".join(sorted({f"{t.seeds} {'seed' if t.seeds == 1 else 'seeds'}" for t in self.trials}))
        return (
            f"\nDecided by less than {100 * limit:g} point ({seeds} per trial, so another seed may choose differently):"
            f" {'; '.join(calls)}.\n"
        )


def score_of(run: Run, by: By) -> float | None:
    """The rule's accuracy of a finished run; None for others.

    Raises:
        RunError: the run held out no rows.
    """
    if not run.finished:
        return None
    last = run.last_evaluation()
    for field in METRICS[by]:
        if last.get(field) is not None:
            return float(last[field])
    more = ", tracking.metrics=imbalanced" if by in IMBALANCED else ""
    raise RunError(
        f"{run.folder}: has no {' or '.join(METRICS[by])}; set dataset.validation_portion above 0{more}"
    )


def trial_of(setting: str, value: float | str, runs: Sequence[Run], by: By) -> Trial:
    """A trial from its runs, one per seed; it has no score unless all of them finished."""
    scores = [score_of(run, by) for run in runs]
    known = [score for score in scores if score is not None and math.isfinite(score)]
    whole = len(known) == len(scores) > 0
    name = method(runs[0]) if runs else ""
    return Trial(
        setting,
        name,
        value,
        fmean(known) if whole else None,
        len(runs),
        max((run.rounds_done for run in runs), default=0),
    )


def write_choice(choice: Choice, path: Path) -> None:
    """Write the record as JSON: the rule, the chosen value of each setting, all trials."""
    best = choice.best()
    stored = {
        "key": choice.key,
        "by": choice.by,
        "rule": choice.rule,
        "chosen": {setting: trial.value for setting, trial in best.items()},
        "trials": [asdict(trial) for trial in choice.trials],
    }
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def read_choice(path: Path) -> Choice:
    """Read a file of `write_choice`. Raises RunError if it is damaged."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        trials = tuple(Trial(**trial) for trial in stored["trials"])
        for trial in trials:
            if not isinstance(trial.score, (int, float, type(None))):
                raise ValueError(f"score {trial.score!r:.40} is no number")
        return Choice(stored["key"], stored["by"], stored["rule"], trials)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read as a record of a choice ({error})") from None


def main(words: Sequence[str]) -> int:
    """Arguments: FILE SETTING [DEFAULT]. Prints the chosen value of a setting (or of a method with only one setting).

    Without a chosen value it prints DEFAULT and a warning; without DEFAULT it ends with 1.
    """
    if len(words) not in (2, 3):
        print("usage: python -m ssfl.report.studies.choice FILE SETTING [DEFAULT]", file=sys.stderr)
        return 2
    path, wanted, default = Path(words[0]), words[1], words[2] if len(words) == 3 else None
    try:
        print(_chosen(path, wanted))
    except RunError as error:
        print(f"choice: {error}{f'; using {default}' if default else ''}", file=sys.stderr)
        if default is None:
            return 1
        print(default)
    return 0


def _chosen(path: Path, wanted: str) -> float | str:
    choice = read_choice(path)
    found = list(dict.fromkeys(t.setting for t in choice.trials if wanted in (t.setting, t.method)))
    best = choice.best()
    if len(found) != 1 or found[0] not in best:
        known = "; ".join(best) or "none"
        searched = (
            f"searched in {len(found)} settings, must be one" if len(found) != 1 else "no trial has a score"
        )
        raise RunError(f"{path}: {wanted}: {searched}; chosen settings: {known}")
    return best[found[0]].value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
