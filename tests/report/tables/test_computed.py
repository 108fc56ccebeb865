"""The text for how a run was computed, from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssfl.report.runs.run import Run
from ssfl.report.tables.computed import computed_text
from ssfl.report.tables.summary import summary_text

CPU = {
    "device": "cpu",
    "kernels": "native",
    "memory_format": "contiguous",
    "convolutions": "direct",
    "block": 1,
}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"executor": "sequential"}, "one client after the other, kernels in C"),
    (
        {"executor": "sequential", "threads": 2, "kernels": "torch"},
        "one client after the other on 2 threads, PyTorch's kernels",
    ),
    ({"executor": "threads", "workers": 3}, "3 clients at a time, on threads, kernels in C"),
    ({"executor": "processes", "workers": 2}, "2 clients at a time, in processes, kernels in C"),
    (
        {"executor": "processes", "workers": 2, "block": 5},
        "2 clients at a time, in processes that train 5 as one, kernels in C",
    ),
    (
        {
            "executor": "sequential",
            "memory_format": "channels_last",
            "convolutions": "winograd",
            "precision": "bf16",
        },
        "one client after the other, kernels in C, channels last, Winograd convolutions, bf16",
    ),
    ({"executor": "batched", "block": 7, "device": "cuda"}, "7 clients trained as one, on a CUDA device"),
    ({"executor": "auto"}, ""),
]


@pytest.mark.parametrize(("engine", "words"), CASES)
def test_the_engine_in_words(engine: dict[str, Any], words: str) -> None:
    run = Run(Path("x"), {"engine": {**CPU, **engine}}, ())
    assert computed_text(run) == words
    assert words in summary_text(run)
    assert ("computed" in summary_text(run)) == bool(words)
