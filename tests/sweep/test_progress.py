"""The display over all cells, on a terminal and without one."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ssfl.sweep.progress import SweepProgress

ROUNDS = {"a": 4, "b": 2}


def _event(**fields: Any) -> str:
    return json.dumps({"event": "round", **fields})


def _display(terminal: bool) -> tuple[SweepProgress, io.StringIO]:
    out = io.StringIO()
    return SweepProgress(ROUNDS, Console(file=out, force_terminal=terminal, width=100)), out


def test_a_line_a_cell_where_there_is_no_terminal() -> None:
    progress, out = _display(terminal=False)
    with progress:
        progress.start("a", "seed=1")
        progress.start("b", "seed=2")
        progress.line("b", _event(round=1, global_accuracy=0.5))
        progress.line("a", _event(round=1, client_accuracy_mean=0.25, global_accuracy=None))
        progress.line("a", "no JSON, {either: way")
        progress.line("a", "{half")
        progress.line("a", "[1, 2]")
        progress.stop("b", True)
        progress.stop("a", True)
    first, second = out.getvalue().splitlines()
    assert first.startswith("[1/2] seed=2: done in 0 s")
    assert first.endswith("global accuracy 0.500")
    assert second.endswith("clients accuracy 0.250")


def test_a_cell_that_failed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    progress, out = _display(terminal=False)
    progress.start("a", "seed=1")
    progress.retry("a", 1)
    progress.stop("a", False)
    assert out.getvalue() == "[1/2] seed=1: FAILED\n"
    assert capsys.readouterr().err == "seed=1: exit 1, trying once more\n"


def test_one_bar_counts_the_rounds_of_all_cells() -> None:
    progress, out = _display(terminal=True)
    with progress:
        progress.start("a", "seed=1")
        progress.start("b", "seed=2")
        progress.line("a", _event(round=1))
        progress.line("a", _event(round=3))
        progress.line("a", _event(round=2))  # a resumed cell repeats a round: counted once
        progress.line("b", _event(round=1))
        (task,) = [task for task in progress._bars.tasks if task.total == 6]
        assert task.completed == 4
        progress.stop("a", True)
        assert task.completed == 5
    assert "1 of 2 cells; rounds" in out.getvalue()
