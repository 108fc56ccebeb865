"""Two more figures, for pages of results: accuracy against training FLOPs, and against sparsity."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssfl.report.figures.run_figures import ACCURACY_PANELS, accuracy_curves
from ssfl.report.figures.style import (
    Group,
    axis_of_shares,
    groups_by,
    legend_below,
    look,
    new_figure,
    say_nothing_there,
)
from ssfl.report.runs import Run, is_evaluated
from ssfl.report.runs.labels import density, labels

Point = tuple[float, float, float]
"""Sparsity, mean accuracy, sample standard deviation (all 0-1; deviation 0 for a single seed)."""
Result = Callable[[Run, str], float | None]
"""A run's result in an accuracy; None if it has none."""


def accuracy_against_flops(runs: Sequence[Run]) -> Figure:
    """Both accuracies over the training FLOPs of all clients so far, in teraFLOPs (1e12)."""
    return accuracy_curves(runs, evaluated_teraflops, "training of all clients so far (TFLOPs)")


def evaluated_teraflops(run: Run) -> list[float]:
    """TeraFLOPs of training until each evaluation."""
    spent = accumulate((row.get("train_flops") or 0.0) / 1e12 for row in run.exchanges)
    return [total for total, row in zip(spent, run.exchanges) if is_evaluated(row)]


def last_accuracy(run: Run, metric: str) -> float | None:
    """The last evaluation's; None if the run did not finish."""
    value = run.last_evaluation().get(metric)
    return float(value) if run.finished and value is not None else None


def accuracy_against_sparsity(
    runs: Sequence[Run], names: Sequence[str] | None = None, result: Result = last_accuracy
) -> Figure:
    """Both accuracies over the sparsity (1 - density): mean and sample standard deviation over finished seeds.

    names: the series of each run; None: by all settings but the density. result: a run's accuracy (0-1).
    """
    with look():
        figure = new_figure(10, 4.6)
        panels = figure.subplots(1, 2, sharey=True)
        groups = groups_by(runs, labels(runs, with_density=False) if names is None else names)
        means: list[float] = []
        for axes, (metric, title) in zip(panels, ACCURACY_PANELS):
            for group in groups:
                _points(axes, group, sparsity_points(group.runs, metric, result))
            axes.set_title(title)
            axes.set_xlabel("sparsity: share of the prunable weights removed")
            points = [point for group in groups for point in sparsity_points(group.runs, metric, result)]
            axis_of_shares(axes, "x", [sparsity for sparsity, _, _ in points])
            means += [mean for _, mean, _ in points]
            if not axes.containers:
                say_nothing_there(axes, "not evaluated")
        axis_of_shares(panels[0], "y", means)  # shared axis: set after both panels are drawn
        panels[0].set_ylabel("accuracy")
        legend_below(figure, groups, [group.label for group in groups])
    return figure


def sparsity_points(runs: Sequence[Run], metric: str, result: Result = last_accuracy) -> list[Point]:
    """A point for each density of finished runs, from dense to sparse; unfinished runs are not included."""
    found: dict[float, list[float]] = {}
    for run in runs:
        value, kept = result(run, metric), density(run)
        if value is not None and kept is not None:
            found.setdefault(round(1 - kept, 9), []).append(value)
    return [
        (sparsity, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for sparsity, values in sorted(found.items())
    ]


def _points(axes: Axes, group: Group, points: Sequence[Point]) -> None:
    if points:
        xs, ys, spreads = zip(*points)
        axes.errorbar(xs, ys, yerr=spreads, capsize=3, **group.look)
