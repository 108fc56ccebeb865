"""Measured figures: table, JSON, and the common options of all benchmarks."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.isa import CAPS, hindrance, restart_capped
from benchmarks.machine import describe


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    """Median, in `unit`."""
    unit: str
    against: str | None = None
    """The reference of the comparison, measured in the same run."""
    ratio: float | None = None
    """Improvement over `against` (seconds and bytes: against / value); for shares: value / against."""
    n: int = 1
    """Number of measurements in the median."""
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
    """Median over turns of theirs / ours; a disturbance of a whole turn cancels."""
    return statistics.median(b / a for a, b in zip(ours, theirs))


class _CappedAction(argparse.Action):
    """Restart the benchmark with the limits of an instruction set, unless they are set."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: object = None,
    ) -> None:
        if why := hindrance(values, platform.machine()):
            parser.error(f"--isa {values}: {why}")
        restart_capped(values)
        setattr(namespace, self.dest, values)


def options(description: str) -> argparse.ArgumentParser:
    """--quick, --json and --isa."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few repetitions, small sizes: under 60 s if no other option asks for more work",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and FILE.machine.json")
    parser.add_argument(
        "--isa", choices=CAPS, action=_CappedAction, help="limit every library to an instruction set"
    )
    return parser


def publish(figures: Iterable[Figure], path: Path | None, kernels: bool = True) -> None:
    """Print the table; write the figures, and the machine next to them, if a path is given.

    kernels: False if ssfl ran without its compiled kernels.
    """
    rows = list(figures)
    machine = describe(kernels)
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
