"""`main.py KEY=VALUE...` with marks on stderr where a part of the start begins and ends; for bench_start.

python -X importtime -m benchmarks.start_probe KEY=VALUE...
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

MARK = "start_probe:"
"""The beginning of a mark's line; then "begin" or "end", the part, and a clock in seconds."""


def marked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with marks around each call."""

    @functools.wraps(function)
    def call(*arguments: Any, **names: Any) -> Any:
        _mark("begin", part)
        try:
            return function(*arguments, **names)
        finally:
            _mark("end", part)

    return call


def _mark(edge: str, part: str) -> None:
    print(MARK, edge, part, repr(time.perf_counter()), file=sys.stderr, flush=True)


def main() -> int:
    """The run; returns its exit code."""
    from ssfl.assemble import lifecycle
    from ssfl.cli import main as ssfl_main
    from ssfl.engine.loop import RoundLoop

    parts: tuple[tuple[object, str, str], ...] = (
        (lifecycle, "setup_of", "setup"),
        (lifecycle, "resolve_engine", "calibration"),
        (RoundLoop, "step", "rounds"),
        (lifecycle, "summarise", "report"),
    )
    for owner, function, part in parts:
        setattr(owner, function, marked(part, getattr(owner, function)))
    return ssfl_main(["run", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
