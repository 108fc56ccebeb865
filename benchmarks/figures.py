"""Measured figures: their table, their JSON, and the options that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    """Median, in `unit`."""
    unit: str
    against: str | None = None
    """What it is compared with, measured in the same run."""
    ratio: float | None = None
    """How many times better than `against` (seconds and bytes: against / value); for shares: value / against."""
    n: int = 1
    """Measurements behind the median."""
    spread: float = 0.0
    """Interquartile range, in `unit`."""


def spread(values: Sequence[float]) -> float:
    """Interquartile range; 0 for fewer than 2 values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def times(name: str, seconds: Sequence[float], unit: str = "s") -> Figure:
    """Median and spread of measurements."""
    return Figure(name, statistics.median(seconds), unit, n=len(seconds), spread=spread(seconds))


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over turns of theirs / ours: a disturbance that hits a whole turn cancels."""
    return statistics.median(b / a for a, b in zip(ours, theirs))


def options(description: str) -> argparse.ArgumentParser:
    """--quick and --json."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repetitions, small sizes: under 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and FILE.machine.json")
    return parser


def publish(figures: Iterable[Figure], path: Path | None) -> None:
    """Print the table; write the list of figures, and the machine beside it, if a path is given."""
    rows = list(figures)
    machine = describe()
    print("\n" + "; ".join(f"{key} {value}" for key, value in machine.items()))
    print(table(rows))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json([asdict(row) for row in rows], path)
        write_json(machine, path.with_suffix(".machine.json"))


def write_json(content: Any, path: Path) -> None:
    """Indented, one newline at the end."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(figures: Sequence[Figure]) -> str:
    """Columns for people."""
    if not figures:
        return "nothing was measured"
    cells = [("figure", "value", "unit", "ratio", "against", "n", "spread")]
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.3g}"
        cells.append(
            (
                f.name,
                f"{f.value:.4g}",
                f.unit,
                ratio,
                f.against or "",
                str(f.n),
                f"{f.spread:.2g}" if f.n > 1 else "",
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)
