"""A learning rate per method, from a search in which every method gets the same.

`python -m ssfl.report.tune choose SWEEP FILE` reads a sweep over optimizer.lr and writes FILE (JSON: every trial, and
the rate chosen for each method); `... get FILE METHOD DEFAULT` prints a rate for a script.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssfl.report.cells import settings
from ssfl.report.runs import Run, RunError

CRITERION = (
    "highest mean client accuracy after the last round, the one metric that every method has; one seed that no reported"
    " run uses; test data, since the sets have no validation part: the same for every method, so it favours none, but"
    " the reported accuracies are those of rates chosen with sight of test data"
)


def method_key(run: Run) -> str:
    """The algorithm's name, or the mode where its mask is random: what has a rate of its own."""
    name, mode = run.setting("algorithm.name"), run.setting("algorithm.params.mode", "static")
    return str(mode if name == "ssfl" and mode != "static" else name)


def search(folder: Path) -> dict[str, Any]:
    """Every trial of a sweep over optimizer.lr, and the best finished one of each method.

    Raises:
        RunError: nothing there, or a trial is missing or half-finished: a search is compared whole or not at all.
    """
    trials: list[dict[str, Any]] = []
    for setting in settings([folder]):
        if len(setting.finished) < setting.asked:
            raise RunError(f"{folder}: {setting.label}: {setting.seeds} finished; end the search first")
        for run in setting.finished:
            last = run.last_evaluation()
            trials.append(
                {
                    "method": method_key(run),
                    "lr": run.setting("optimizer.lr"),
                    "rounds": run.rounds_done,
                    "seed": run.setting("experiment.seed"),
                    "global_accuracy": last.get("global_accuracy"),
                    "client_accuracy_mean": last.get("client_accuracy_mean"),
                    "command": setting.command,
                }
            )
    best: dict[str, dict[str, Any]] = {}
    for trial in trials:
        known = best.setdefault(trial["method"], trial)
        if (trial["client_accuracy_mean"] or 0.0) > (known["client_accuracy_mean"] or 0.0):
            best[trial["method"]] = trial
    chosen = {method: trial["lr"] for method, trial in sorted(best.items())}
    return {"chosen": chosen, "criterion": CRITERION, "trials": trials}


def rate(path: Path, method: str, default: str) -> str:
    """The rate chosen for a method, or `default` with a remark where nothing was searched."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["chosen"][method])
    except (OSError, ValueError, KeyError):
        print(f"{method}: no tuned learning rate in {path}, taking {default}", file=sys.stderr)
        return default


def main(words: Sequence[str]) -> int:
    """The two commands."""
    try:
        match list(words):
            case ["choose", folder, file]:
                Path(file).write_text(json.dumps(search(Path(folder)), indent=1) + "\n", encoding="utf-8")
            case ["get", file, method, default]:
                print(rate(Path(file), method, default))
            case _:
                print("usage: choose SWEEP FILE | get FILE METHOD DEFAULT", file=sys.stderr)
                return 2
    except RunError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
