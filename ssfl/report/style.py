"""How every plot looks, and which runs share a colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssfl.report.labels import labels
from ssfl.report.runs import Run

# Okabe and Ito's palette (2008), told apart with every common colour blindness; its yellow is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

LOOK: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@final
@dataclass(frozen=True)
class Group:
    """The runs of one setting (they differ by seed), with the colour and marker that stand for it."""

    label: str
    colour: str
    marker: str
    runs: tuple[Run, ...]

    @property
    def repeated(self) -> bool:
        """Whether there are enough finished runs for a mean."""
        return sum(run.finished is not None for run in self.runs) > 1

    @property
    def legend(self) -> str:
        """The label, how many seeds stand behind a mean, and what did not finish."""
        if len(self.runs) == 1:
            run = self.runs[0]
            return self.label if run.finished else f"{self.label} ({run.status})"
        finished = sum(run.finished is not None for run in self.runs)
        said = f"mean of {finished} runs" if self.repeated else f"{len(self.runs)} runs"
        rest = len(self.runs) - finished
        return f"{self.label} ({said}{f', {rest} unfinished' if rest else ''})"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by setting, in order of first appearance; colours first, then markers, tell 49 settings apart."""
    members: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels(runs)):
        members.setdefault(label, []).append(run)
    return [
        Group(label, COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], tuple(found))
        for i, (label, found) in enumerate(members.items())
    ]


@contextmanager
def look() -> Iterator[None]:
    """Draw with this package's settings, without changing anybody else's."""
    with matplotlib.rc_context(LOOK):
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A figure of its own, outside pyplot's list of open ones."""
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def legend_below(figure: Figure, groups: Sequence[Group], texts: Sequence[str]) -> None:
    """The groups' legend under the axes, where it hides nothing; the figure grows by its height."""
    handles = [
        Line2D([], [], color=group.colour, marker=group.marker, markersize=5, label=text)
        for group, text in zip(groups, texts)
    ]
    if not handles:
        return
    longest = max(map(len, texts))
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 // (longest + 8))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def say_nothing_there(axes: Axes, text: str) -> None:
    """An empty plot that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
