"""The parts of `main.py preset=digits`: imports, setup, calibration, rounds, report, rest; first and second start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.contest import ROOT
from benchmarks.figures import Figure, options, publish, times
from benchmarks.start_probe import MARK
from ssfl.assemble.measurement import BUSY

IMPORT = re.compile(r"import time:\s+(\d+) \|")
"""Microseconds of one module without the modules that it imports."""
PARTS = ("import", "setup", "calibration", "rounds", "report", "rest")


class StartError(RuntimeError):
    """The run failed; the message has the end of its output."""


def parts_of(stderr: Iterable[str], rounds: float, total: float) -> dict[str, float]:
    """Seconds of each part; an import outside rounds counts only as an import, one in a round only as a round.

    rounds: seconds of all exchanges. total: of the whole process.
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    inside: list[tuple[str, float]] = []
    for line in stderr:
        if found := IMPORT.match(line):
            if inside and inside[-1][0] == "rounds":
                continue
            spent = int(found[1]) / 1e6
            seconds["import"] += spent
            if inside:
                seconds[inside[-1][0]] -= spent
        elif line.startswith(MARK):
            _, edge, part, clock = line.split()
            if edge == "begin":
                inside.append((part, float(clock)))
            else:
                seconds[part] += float(clock) - inside.pop()[1]
    seconds["rounds"] = rounds
    seconds["rest"] = total - sum(seconds.values())
    return seconds


def round_seconds(metrics: str) -> float:
    """Seconds of all exchanges: rounds, and the phases before and after them."""
    events = [json.loads(line) for line in metrics.splitlines()]
    return float(sum(e["wall_seconds"] for e in events if e["event"] in ("round", "phase")))


def start(words: Sequence[str], folder: Path) -> dict[str, float]:
    """Run once in `folder`, which also has the cache of measurements; the seconds of each part."""
    output = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-X", "importtime", "-m", "benchmarks.start_probe"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)}
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, *words, f"experiment.output_dir={output}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    total = time.perf_counter() - begun
    lines = done.stderr.splitlines()
    if done.returncode:
        said = "\n".join(line for line in lines if not line.startswith(("import time:", MARK)))
        raise StartError(f"{' '.join(words)}: exit code {done.returncode}; its last output:\n{said[-1500:]}")
    if BUSY in lines:
        print("the machine was busy: calibration was repeated and is not cached", file=sys.stderr)
    (metrics,) = output.glob("*/*/metrics.jsonl")
    return parts_of(lines, round_seconds(metrics.read_text(encoding="utf-8")), total)


def figures(words: Sequence[str], starts: int) -> list[Figure]:
    """Pairs of starts: the first measures this machine, the second finds the measurement in the cache."""
    found: dict[str, list[dict[str, float]]] = {"first start": [], "second start": []}
    with tempfile.TemporaryDirectory() as folder:
        start(words, Path(folder))  # not counted: it reads the libraries from the disk
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            for one in found.values():
                one.append(start(words, Path(folder)))
    rows = []
    for which, measured in found.items():
        for part in PARTS:
            rows.append(times(f"digits: {which}: {part}", [one[part] for one in measured]))
        outside = [sum(one.values()) - one["rounds"] for one in measured]
        rows.append(times(f"digits: {which}: outside rounds", outside))
        rows.append(times(f"digits: {which}: whole command", [sum(one.values()) for one in measured]))
    return rows


def main() -> None:
    """See README.md in this folder."""
    parser = options(__doc__ or "")
    parser.add_argument("--starts", type=int, help="pairs of a first and a second start (default: 3)")
    chosen = parser.parse_args()
    words = ["preset=digits", *(["training.comm_round=2"] if chosen.quick else [])]
    publish(figures(words, chosen.starts or (1 if chosen.quick else 3)), chosen.json)


if __name__ == "__main__":
    main()
