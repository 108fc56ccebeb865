"""The style of all plots, and the colours of settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ssfl.report.runs import Run
from ssfl.report.runs.labels import labels

# Okabe and Ito's palette (2008), distinguishable with every common colour blindness, without yellow, which is
# too pale on white. Then three of Tol's muted colours (2021).
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#882255", "#999933", "#332288"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
"""After the last colour, colours are repeated with another dash style."""
NEAR_ALL = 0.9
SHORT_AXIS = 0.05
"""Axes of shares up to this length have decimals at their ticks."""
THICKEST, THINNEST = 2.6, 1.4
"""Width of curves in points; the first is thickest, so that it is visible below another curve."""

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
    """The runs of one setting (they differ by seed), and their style."""

    label: str
    runs: tuple[Run, ...]
    place: int
    """Index of the setting in the figure, from 0."""
    settings: int
    """Number of settings in the figure."""

    @property
    def colour(self) -> str:
        """Colour of lines and dots."""
        return COLOURS[self.place % len(COLOURS)]

    @property
    def marker(self) -> str:
        """Of points."""
        return MARKERS[self.place % len(MARKERS)]

    @property
    def dash(self) -> str:
        """Of curves."""
        return DASHES[self.place // len(COLOURS) % len(DASHES)]

    @property
    def width(self) -> float:
        """Width of curves, in points."""
        return THICKEST - (THICKEST - THINNEST) * self.place / max(self.settings - 1, 1)

    @property
    def look(self) -> dict[str, Any]:
        """Keyword arguments for matplotlib's functions of curves."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "linewidth": self.width,
        }

    @property
    def repeated(self) -> bool:
        """Whether there are enough finished runs for a mean."""
        return sum(run.finished is not None for run in self.runs) > 1

    @property
    def legend(self) -> str:
        """The label, the number of seeds in a mean, and unfinished runs."""
        if len(self.runs) == 1:
            run = self.runs[0]
            return self.label if run.finished else f"{self.label} ({run.status})"
        finished = sum(run.finished is not None for run in self.runs)
        count = f"mean of {finished} runs" if self.repeated else f"{len(self.runs)} runs"
        rest = len(self.runs) - finished
        return f"{self.label} ({count}{f', {rest} unfinished' if rest else ''})"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by setting, in order of first appearance; colours, dashes and markers tell 280 settings apart."""
    return groups_by(runs, labels(runs))


def groups_by(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    """The runs grouped by these labels, one label per run."""
    members: dict[str, list[Run]] = {}
    for run, label in zip(runs, names, strict=True):
        members.setdefault(label, []).append(run)
    return [Group(label, tuple(found), i, len(members)) for i, (label, found) in enumerate(members.items())]


def axis_of_shares(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Format an axis in percent; it ends at 100 % at most, and there if values are near it."""
    axis, limits, limit = (
        (axes.xaxis, axes.get_xlim, axes.set_xlim)
        if which == "x"
        else (axes.yaxis, axes.get_ylim, axes.set_ylim)
    )
    low, high = limits()
    if len(values):
        high = 1.0 if max(values) > NEAR_ALL else min(high, 1.0)
        limit(low, high)
    axis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > SHORT_AXIS else None))


@contextmanager
def look() -> Iterator[None]:
    """Draw with this package's settings; matplotlib's global settings do not change."""
    with matplotlib.rc_context(LOOK):
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """A new figure that is not in pyplot's list of open figures."""
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def legend_below(figure: Figure, groups: Sequence[Group], texts: Sequence[str]) -> None:
    """The groups' legend below the axes; the figure's height increases by that of the legend."""
    handles = [Line2D([], [], **group.look, markersize=5, label=text) for group, text in zip(groups, texts)]
    if not handles:
        return
    longest = max(map(len, texts))
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 // (longest + 8))))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def say_nothing_there(axes: Axes, text: str) -> None:
    """Write on an empty plot why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
