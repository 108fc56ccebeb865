"""The four figures of a report; each function takes runs and returns a new figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from ssfl.report.figures.style import (
    Group,
    axis_of_shares,
    groups_of,
    legend_below,
    look,
    new_figure,
    say_nothing_there,
)
from ssfl.report.runs import Row, Run, is_evaluated

ACCURACY_PANELS = (
    ("global_accuracy", "Global model, whole test set"),
    ("client_accuracy_mean", "Clients' own models, own test splits (mean)"),
)
Horizontal = Callable[[Run], list[float]]
Moment = tuple[int, str]
"""Which evaluation: round, and whether after a round or a phase."""
DOT = 0.01
"""About half the width of a dot, as a share of the axis."""
LABEL_CHARACTERS = 44
"""Longer labels of rows are wrapped, so that space is left for the axes."""


def accuracy_against_rounds(runs: Sequence[Run]) -> Figure:
    """Both accuracies over the training round. Thin: single runs; thick: the mean over a setting's finished runs."""
    figure = accuracy_curves(runs, evaluated_rounds, "training round")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def accuracy_against_bytes(runs: Sequence[Run]) -> Figure:
    """Both accuracies over all bytes sent so far, including one-off scoring and masks, in megabytes (1e6 bytes).

    A tick at the bottom shows the bytes of the one-off phases. The axis is logarithmic if the totals of the runs differ
    by more than a factor of five.
    """
    figure = accuracy_curves(
        runs, evaluated_megabytes, "sent so far, in all directions (MB)\nticks: one-off phases"
    )
    _mark_one_offs(figure, runs)
    totals = [run.total_bytes for run in runs if run.evaluations and run.total_bytes]
    if totals and max(totals) > 5 * min(totals):
        for axes in figure.axes:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("sent so far, in all directions (MB, logarithmic)\nticks: one-off phases")
    return figure


def _mark_one_offs(figure: Figure, runs: Sequence[Run]) -> None:
    for group in groups_of(runs):
        sent = [run.one_off_bytes / 1e6 for run in group.runs if run.evaluations]
        for axes in figure.axes if any(sent) else ():
            axes.axvline(float(np.mean(sent)), ymax=0.06, color=group.colour, linewidth=2.5)


def client_accuracy_spread(runs: Sequence[Run]) -> Figure:
    """Accuracies of clients at the last evaluation: one dot per client, mean ± standard deviation as in the tables."""
    with look():
        rows = [(group, run) for group in groups_of(runs) for run in group.runs if _client_accuracy(run)]
        names = [fill(_row_label(group, run), LABEL_CHARACTERS) for group, run in rows]
        lines = max((name.count("\n") + 1 for name in names), default=1)
        figure = new_figure(8, 1.4 + max(0.45, 0.2 * lines) * max(len(rows), 2))
        axes = figure.subplots()
        if not rows:
            say_nothing_there(axes, "no client was evaluated")
            return figure
        for height, (group, run) in enumerate(rows):
            _spread(axes, height, _client_accuracy(run), group.colour)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_title("Accuracy over clients at the last evaluation\n(line and box: mean ± std)")
        axes.set_xlabel("accuracy of a client's own model on its own test split")
        axis_of_shares(axes, "x", [value for _, run in rows for value in _client_accuracy(run)])
        axes.set_xlim(right=axes.get_xlim()[1] + DOT)  # space for the whole dot at accuracy 1
    return figure


def layer_density(runs: Sequence[Run]) -> Figure:
    """Share kept of each layer by the latest mask, in the order of the network; a cross where no weight is kept."""
    with look():
        groups = [group for group in groups_of(runs) if any(run.layer_density for run in group.runs)]
        names = list(dict.fromkeys(name for run in runs for name in run.layer_density))
        figure = new_figure(8, 1.8 + 0.24 * max(len(names), 4))
        axes = figure.subplots()
        if not names:
            say_nothing_there(axes, "no mask was made")
            return figure
        for number, group in enumerate(groups):
            shift = 0.5 * (
                (number + 0.5) / len(groups) - 0.5
            )  # offset the settings so that they do not overlap
            for run in group.runs:
                _layers(axes, names, run, group, shift)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # space for the cross at density 0
        axes.set_title("Density of each layer (x: no weight kept)")
        axes.set_xlabel("share of the layer's weights kept")
        axis_of_shares(axes, "x", [share for run in runs for share in run.layer_density.values()])
        axes.set_xlim(right=axes.get_xlim()[1] + DOT)
        legend_below(figure, groups, [group.label for group in groups])
    return figure


def evaluated_rounds(run: Run) -> list[float]:
    """The round of each evaluation."""
    return [row["round"] for row in run.evaluations]


def evaluated_megabytes(run: Run) -> list[float]:
    """Megabytes sent in all directions until each evaluation."""
    sent = accumulate(_sent_bytes(row) / 1e6 for row in run.exchanges)
    return [total for total, row in zip(sent, run.exchanges) if is_evaluated(row)]


def _sent_bytes(row: Row) -> float:
    return row["downlink_bytes"] + row["uplink_bytes"] + (row.get("peer_bytes") or 0)


def accuracy_curves(runs: Sequence[Run], horizontal: Horizontal, x_label: str) -> Figure:
    """Both accuracies over the values of `horizontal` for each evaluation of a run."""
    with look():
        groups = groups_of(runs)
        figure = new_figure(10, 4.6)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (metric, title) in zip(panels, ACCURACY_PANELS):
            for group in groups:
                _curves(axes, group, metric, horizontal)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            if not axes.lines:
                say_nothing_there(axes, "not evaluated")
        # After both are drawn: the panels share this axis, and setting its limits disables automatic limits.
        metrics = [metric for metric, _ in ACCURACY_PANELS]
        rows = [row for run in runs for row in run.evaluations]
        axis_of_shares(panels[0], "y", [row[name] for row in rows for name in metrics if _has(row, name)])
        panels[0].set_ylabel("accuracy")
        legend_below(figure, groups, [group.legend for group in groups])
    return figure


def _has(row: Row, metric: str) -> bool:
    return row.get(metric) is not None


def _points(run: Run, metric: str, horizontal: Horizontal) -> dict[Moment, tuple[float, float]]:
    """x and y of each evaluation that has the metric."""
    found = zip(horizontal(run), run.evaluations)
    return {(row["round"], row["event"]): (x, row[metric]) for x, row in found if _has(row, metric)}


def _curves(axes: Axes, group: Group, metric: str, horizontal: Horizontal) -> None:
    finished = []
    for run in group.runs:
        points = _points(run, metric, horizontal)
        if not points:
            continue
        alone = len(group.runs) == 1 or (run.finished is not None and not group.repeated)
        _line(axes, group, list(points.values()), bold=alone)
        if not run.finished:
            last = list(points.values())[-1]
            axes.plot(*([value] for value in last), "x", color=group.colour, markersize=9, markeredgewidth=2)
        elif group.repeated:
            finished.append(points)
    if finished:
        _line(axes, group, mean_curve(finished), bold=True)


def mean_curve(curves: Sequence[Mapping[Moment, tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean x and y at each evaluation that all curves have; bytes at the same round differ between seeds."""
    common = [moment for moment in curves[0] if all(moment in curve for curve in curves)]
    means = [np.mean([curve[moment] for curve in curves], axis=0) for moment in common]
    return [(float(x), float(y)) for x, y in means]


def _line(axes: Axes, group: Group, points: Sequence[tuple[float, float]], bold: bool) -> None:
    xs, ys = ([point[i] for point in points] for i in (0, 1))
    if not bold:
        axes.plot(xs, ys, color=group.colour, linestyle=group.dash, linewidth=0.8, alpha=0.35)
        return
    every = max(1, len(xs) // 8)
    # Markers start at a different place for each setting, so that markers of equal curves do not overlap.
    marked = sorted({*range(group.place % every, len(xs), every), len(xs) - 1})
    axes.plot(xs, ys, **group.look, markersize=5, markevery=marked)


def _client_accuracy(run: Run) -> list[float]:
    return [value for value in run.last_evaluation().get("client_accuracy") or () if value is not None]


def _row_label(group: Group, run: Run) -> str:
    seed = f", seed {run.started.get('seed', '?')}" if len(group.runs) > 1 else ""
    return f"{group.label}{seed}" + ("" if run.finished else f"\n{run.status}")


def _spread(axes: Axes, height: int, values: list[float], colour: str) -> None:
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
    axes.scatter(values, height + jitter, s=10, color=colour, alpha=0.45, linewidths=0)
    mean, std = float(np.mean(values)), float(np.std(values))
    axes.barh(height, 2 * std, left=mean - std, height=0.6, facecolor="none", edgecolor=colour, linewidth=1.5)
    axes.plot([mean, mean], [height - 0.3, height + 0.3], color=colour, linewidth=2.5)


def _layers(axes: Axes, names: Sequence[str], run: Run, group: Group, shift: float) -> None:
    rows = [(names.index(name) + shift, share) for name, share in run.layer_density.items()]
    for there, marker, size in ((True, group.marker, 5), (False, "x", 8)):
        heights = [height for height, share in rows if (share > 0) == there]
        shares = [share for _, share in rows if (share > 0) == there]
        axes.plot(shares, heights, marker, color=group.colour, markersize=size, alpha=0.8)
