"""What of a sweep is committed: the plan, and each cell's configuration, metrics and environment; no weights, no paths.

`python -m ssfl.report.collect SWEEP FOLDER` copies them; everything in `ssfl.report` reads the copy like the original.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssfl.report.cells import SWEEP, best_run
from ssfl.report.runs import RunError

DATA = "dataset.data_dir=$SSFL_DATA_DIR"
_PLACES = {"dataset.data_dir": DATA, "experiment.output_dir": "experiment.output_dir=outputs"}


def collect(sweep: Path, out: Path) -> int:
    """Copy a sweep's results to `out`, which is replaced; gives how many of its cells have a run.

    Raises:
        RunError: `sweep` is no sweep, or `out` holds something that is no such copy.
    """
    try:
        plan: dict[str, Any] = json.loads((sweep / SWEEP).read_text(encoding="utf-8"))
        names = [cell["name"] for cell in plan["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{sweep}: no readable {SWEEP} there ({error})") from None
    _clear(out)
    for cell in plan["cells"]:
        cell["overrides"] = list(map(_scrubbed, cell["overrides"]))
    plan["words"] = list(map(_scrubbed, plan["words"]))
    (out / SWEEP).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    runs = [(name, best_run(sweep / "runs" / name)) for name in names]
    for name, run in runs:
        if run is not None:
            _copy(run.folder, out / "runs" / name / run.folder.name)
    return sum(run is not None for _, run in runs)


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / SWEEP).is_file():
            raise RunError(f"{out}: holds something that is no copy of a sweep; name another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _copy(run: Path, place: Path) -> None:
    place.mkdir(parents=True)
    shutil.copyfile(run / "metrics.jsonl", place / "metrics.jsonl")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    config = re.sub(r"(?m)^(\s+data_dir:).*$", r"\1 $SSFL_DATA_DIR", config)
    config = re.sub(r"(?m)^(\s+output_dir:).*$", r"\1 outputs", config)
    (place / "config.yaml").write_text(config, encoding="utf-8")
    if (run / "environment.json").is_file():
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        environment["command"] = ["ssfl", *map(_scrubbed, environment.get("command", [])[1:])]
        (place / "environment.json").write_text(json.dumps(environment, indent=1) + "\n", encoding="utf-8")


def _scrubbed(word: str) -> str:
    """A word without a place of this machine; a line of words, too."""
    return " ".join(_PLACES.get(part.partition("=")[0], part) for part in word.split(" "))


def main(words: Sequence[str]) -> int:
    """SWEEP FOLDER."""
    if len(words) != 2:
        print("usage: python -m ssfl.report.collect SWEEP FOLDER", file=sys.stderr)
        return 2
    try:
        count = collect(Path(words[0]), Path(words[1]))
    except RunError as error:
        print(f"collect: {error}", file=sys.stderr)
        return 1
    print(f"{count} runs: {words[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
