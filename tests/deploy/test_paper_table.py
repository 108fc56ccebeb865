"""The table beside the paper's deployment claim (docs/deployment-performance.md) says what was measured."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"
GOALS = {"masked 0.1": 9.0, "masked 0.1, small profile": 40.0}
"""Of the deployment issue: how many times shorter than dense at 10 Mbit/s."""

VERDICTS = {
    (True, True): "both reached",
    (True, False): "**`small` missed**",
    (False, True): "**fp32 missed**",
    (False, False): "**both missed**",
}
"""Whether each goal is reached -> the text of the table."""


def measured() -> dict[str, tuple[float, float | None]]:
    """Name of a cell -> seconds a round, and how many times shorter than dense."""
    rows = [
        row
        for name in ("link_10mbit.json", "link_10mbit_150ms.json", "link_100mbit_1000mbit.json")
        for row in json.loads((RESULTS / name).read_text(encoding="utf-8"))
    ]
    return {
        row["name"].removesuffix(": round"): (row["value"], row["ratio"])
        for row in rows
        if row["name"].endswith(": round")
    }


def documented() -> dict[str, list[str]]:
    """Link -> the other columns of its row."""
    page = (ROOT / "docs" / "deployment-performance.md").read_text(encoding="utf-8")
    section = page.partition("## Comparison with the paper")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_papers_row() -> None:
    dense, sparse, ratio, *_ = documented()["paper: five AWS regions"]
    seconds = [float(text.removesuffix(" s")) for text in (dense, sparse)]
    assert float(ratio) == round(seconds[0] / seconds[1], 1)


def test_every_measured_link_has_its_row() -> None:
    links = {re.sub(r"(\d+ Mbit/s) (\d+ ms) .*", r"\1, \2", name) for name in measured()}
    assert {link for link in documented() if not link.startswith("paper")} == links


@pytest.mark.parametrize("link", [link for link in documented() if not link.startswith("paper")])
def test_a_row_is_what_was_measured(link: str) -> None:
    dense, sparse, sparse_ratio, small, small_ratio, goals = documented()[link]
    cells = {kind: measured()[f"{link.replace(',', '')} {kind}"] for kind in ("dense", *GOALS)}
    for text, (seconds, _) in zip((dense, sparse, small), cells.values(), strict=True):
        assert text == f"{seconds:.3g} s"
    ratios = [cells[kind][1] or 0.0 for kind in GOALS]
    assert [sparse_ratio, small_ratio] == [f"{ratio:.2g}" for ratio in ratios]
    fp32_reached, small_reached = (ratio >= goal for ratio, goal in zip(ratios, GOALS.values(), strict=True))
    assert goals == (VERDICTS[fp32_reached, small_reached] if link.startswith("10 Mbit/s") else "")
