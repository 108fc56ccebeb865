"""The four pictures of a report; each function takes runs and gives a figure of its own.

`python -m ssfl.report.plots [FOLDER]` draws them all from made-up runs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from ssfl.report.runs import Row, Run, is_evaluated
from ssfl.report.style import Group, groups_of, legend_below, look, new_figure, say_nothing_there

METRICS = (
    ("global_accuracy", "Global model, whole test set"),
    ("client_accuracy_mean", "Clients' own models, own test splits (mean)"),
)
Horizontal = Callable[[Run], list[float]]


def accuracy_against_rounds(runs: Sequence[Run]) -> Figure:
    """Both accuracies over the training round. Thin: single runs; thick: the mean over a setting's finished runs."""
    figure = accuracy_curves(runs, evaluated_rounds, "training round")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def accuracy_against_bytes(runs: Sequence[Run]) -> Figure:
    """Both accuracies over everything sent so far, one-off scoring and masks included, in megabytes (1e6 bytes).

    Logarithmic where the runs' totals are more than five times apart.
    """
    figure = accuracy_curves(runs, evaluated_megabytes, "sent so far, down and up (MB)")
    totals = [run.total_bytes for run in runs if run.evaluations and run.total_bytes]
    if totals and max(totals) > 5 * min(totals):
        for axes in figure.axes:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("sent so far, down and up (MB, logarithmic)")
    return figure


def client_accuracy_spread(runs: Sequence[Run]) -> Figure:
    """Each client's accuracy at the last evaluation: a dot a client, a box from quartile to quartile, median inside."""
    with look():
        rows = [(group, run) for group in groups_of(runs) for run in group.runs if _client_accuracy(run)]
        figure = new_figure(8, 1.4 + 0.45 * max(len(rows), 2))
        axes = figure.subplots()
        if not rows:
            say_nothing_there(axes, "no client was evaluated")
            return figure
        for height, (group, run) in enumerate(rows):
            _spread(axes, height, _client_accuracy(run), group.colour)
        axes.set_yticks(range(len(rows)), [_row_label(group, run) for group, run in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_title("Accuracy over clients at the last evaluation")
        axes.set_xlabel("accuracy of a client's own model on its own test split")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def layer_density(runs: Sequence[Run]) -> Figure:
    """Share kept of each layer by the latest mask, in the order of the network; a cross where nothing is kept."""
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
            )  # settings side by side, not on top of each other
            for run in group.runs:
                _layers(axes, names, run, group, shift)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # room for the cross at nothing kept
        axes.set_title("Density of each layer (x: nothing kept)")
        axes.set_xlabel("share of the layer's weights kept")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        legend_below(figure, groups, [group.label for group in groups])
    return figure


def evaluated_rounds(run: Run) -> list[float]:
    """The round of each evaluation."""
    return [row["round"] for row in run.evaluations]


def evaluated_megabytes(run: Run) -> list[float]:
    """Megabytes sent, in all directions, until each evaluation."""
    sent = accumulate(_sent_bytes(row) / 1e6 for row in run.exchanges)
    return [total for total, row in zip(sent, run.exchanges) if is_evaluated(row)]


def _sent_bytes(row: Row) -> float:
    return row["downlink_bytes"] + row["uplink_bytes"] + (row.get("peer_bytes") or 0)


def accuracy_curves(runs: Sequence[Run], horizontal: Horizontal, x_label: str) -> Figure:
    """Both accuracies over what `horizontal` gives for each evaluation of a run."""
    with look():
        groups = groups_of(runs)
        figure = new_figure(10, 4.6)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (metric, title) in zip(panels, METRICS):
            for group in groups:
                _curves(axes, group, metric, horizontal)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if not axes.lines:
                say_nothing_there(axes, "not evaluated")
        panels[0].set_ylabel("accuracy")
        legend_below(figure, groups, [group.legend for group in groups])
    return figure


def _curves(axes: Axes, group: Group, metric: str, horizontal: Horizontal) -> None:
    means: dict[tuple[float, ...], list[list[float]]] = {}
    for run in group.runs:
        points = [(x, row.get(metric)) for x, row in zip(horizontal(run), run.evaluations)]
        known = [(x, y) for x, y in points if y is not None]
        if not known:
            continue
        xs, ys = (list(values) for values in zip(*known))
        alone = len(group.runs) == 1 or (run.finished is not None and not group.repeated)
        _line(axes, group, xs, ys, bold=alone)
        if not run.finished:
            axes.plot(xs[-1:], ys[-1:], "x", color=group.colour, markersize=9, markeredgewidth=2)
        if run.finished and group.repeated:
            means.setdefault(tuple(xs), []).append(ys)
    for at, curves in means.items():  # only curves over the very same rounds or bytes can be averaged
        if len(curves) > 1:
            _line(axes, group, list(at), list(np.mean(curves, axis=0)), bold=True)


def _line(axes: Axes, group: Group, xs: list[float], ys: list[float], bold: bool) -> None:
    if not bold:
        axes.plot(xs, ys, color=group.colour, linewidth=0.8, alpha=0.35)
        return
    every = max(1, len(xs) // 8)
    axes.plot(xs, ys, color=group.colour, linewidth=1.8, marker=group.marker, markersize=5, markevery=every)


def _client_accuracy(run: Run) -> list[float]:
    return [value for value in run.last_evaluation().get("client_accuracy") or () if value is not None]


def _row_label(group: Group, run: Run) -> str:
    seed = f", seed {run.started.get('seed', '?')}" if len(group.runs) > 1 else ""
    return f"{group.label}{seed}" + ("" if run.finished else f"\n{run.status}")


def _spread(axes: Axes, height: int, values: list[float], colour: str) -> None:
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
    axes.scatter(values, height + jitter, s=10, color=colour, alpha=0.45, linewidths=0)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    axes.barh(height, high - low, left=low, height=0.6, facecolor="none", edgecolor=colour, linewidth=1.5)
    axes.plot([median, median], [height - 0.3, height + 0.3], color=colour, linewidth=2.5)


def _layers(axes: Axes, names: Sequence[str], run: Run, group: Group, shift: float) -> None:
    rows = [(names.index(name) + shift, share) for name, share in run.layer_density.items()]
    for there, marker, size in ((True, group.marker, 5), (False, "x", 8)):
        heights = [height for height, share in rows if (share > 0) == there]
        shares = [share for _, share in rows if (share > 0) == there]
        axes.plot(shares, heights, marker, color=group.colour, markersize=size, alpha=0.8)


def main(folder: Path) -> None:
    """Draw all four from made-up runs into `folder`."""
    from ssfl.report.sample import write_sample_run
    from ssfl.report.write import write_report

    with tempfile.TemporaryDirectory() as scratch:
        for density in (0.5, 0.2, 0.05):
            for seed in (0, 1, 2):
                stop = 20 if (density, seed) == (0.05, 2) else None
                place = Path(scratch) / f"ssfl-{density}-{seed}"
                write_sample_run(place, density=density, seed=seed, stop_after=stop)
        write_sample_run(Path(scratch) / "fedavg", algorithm="fedavg")
        print(write_report([Path(scratch)], folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs/sample-report"))
