"""Plots show the numbers of the rows, for one or many runs, finished or not; the files of a report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ssfl.report.figures.run_figures import (
    accuracy_against_bytes,
    accuracy_against_rounds,
    client_accuracy_spread,
    evaluated_megabytes,
    layer_density,
    mean_curve,
)
from ssfl.report.figures.style import groups_by
from ssfl.report.runs import Run, load_run, load_runs
from ssfl.report.runs.sample import LAYERS, write_sample_run
from ssfl.report.sample_report import main
from ssfl.report.write import write_report

Draw = Callable[[Sequence[Run]], Figure]
DRAWN: tuple[Draw, ...] = (
    accuracy_against_rounds,
    accuracy_against_bytes,
    client_accuracy_spread,
    layer_density,
)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Twelve runs of ten settings: one repeated three times, one unfinished, one dense."""
    top = tmp_path_factory.mktemp("sweep")
    for number, share in enumerate((0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2)):
        write_sample_run(top / f"a{number}", density=share, rounds=6)
    for seed in (0, 1, 2):
        write_sample_run(top / f"b{seed}", density=0.05, seed=seed, rounds=6)
    write_sample_run(top / "c", density=0.02, rounds=6, stop_after=3)
    write_sample_run(top / "d", algorithm="fedavg", rounds=6)
    return load_runs([top])


@pytest.fixture(scope="module")
def one(many: list[Run]) -> list[Run]:
    return many[:1]


def _xs(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_xdata())]


def _ys(line: Line2D) -> list[float]:
    return [float(value) for value in np.asarray(line.get_ydata())]


def _texts(figure: Figure) -> list[str]:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legends + [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]


@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("several", [False, True])
def test_every_plot_can_be_drawn(draw: Draw, several: bool, one: list[Run], many: list[Run]) -> None:
    before = dict(matplotlib.rcParams)
    picture = io.BytesIO()
    figure = draw(many if several else one)
    figure.savefig(picture, format="png", dpi=40)
    assert picture.getvalue().startswith(b"\x89PNG")
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []  # no figure is left open in the global list


@pytest.mark.parametrize("draw", DRAWN)
def test_every_plot_says_when_there_is_nothing_to_show(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    figure = draw([load_run(tmp_path)])
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    notes = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert notes
    assert all("no" in text for text in notes)


def test_curves_are_the_rows_numbers(one: list[Run]) -> None:
    rounds = accuracy_against_rounds(one)
    expected = [row["global_accuracy"] for row in one[0].rows if row["event"] == "round"]
    assert _xs(rounds.axes[0].lines[0]) == [1, 2, 3, 4, 5, 6]
    assert _ys(rounds.axes[0].lines[0]) == expected
    own = [row["client_accuracy_mean"] for row in one[0].rows if row["event"] == "round"]
    assert _ys(rounds.axes[1].lines[0]) == own


def test_bytes_are_cumulative_and_include_the_scoring(one: list[Run]) -> None:
    # Scoring: 100 clients x 1 MB both ways; a round: 10 clients x 0.9 MB both ways.
    assert evaluated_megabytes(one[0]) == pytest.approx([200 + 18 * number for number in range(1, 7)])


def test_a_mean_is_over_finished_runs_of_one_setting(many: list[Run]) -> None:
    seeds = [run for run in many if run.folder.name.startswith("b")]
    expected = np.mean([[row["global_accuracy"] for row in run.evaluations] for run in seeds], axis=0)
    lines = [np.asarray(_ys(line)) for line in accuracy_against_rounds(many).axes[0].lines]
    assert any(line.shape == expected.shape and np.allclose(line, expected) for line in lines)


def test_an_unfinished_run_is_marked_and_left_out_of_means(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_sample_run(tmp_path / f"{seed}", seed=seed, rounds=6)
    write_sample_run(tmp_path / "2", seed=2, rounds=6, stop_after=3)
    runs = load_runs([tmp_path])
    figure = accuracy_against_rounds(runs)
    assert _texts(figure)[0] == "SSFL, density 0.5 (mean of 2 runs, 1 unfinished)"
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [_xs(line) for line in crosses] == [[3]]
    expected = np.mean([[row["global_accuracy"] for row in run.evaluations] for run in runs[:2]], axis=0)
    np.testing.assert_allclose(_ys(figure.axes[0].lines[-1]), expected)


def test_single_unfinished_runs_say_so_in_the_legend(many: list[Run]) -> None:
    assert "SSFL, density 0.02 (unfinished, round 3 of 6)" in _texts(accuracy_against_rounds(many))


def test_the_spread_shows_every_client(many: list[Run]) -> None:
    figure = client_accuracy_spread(many)
    dots = [np.asarray(group.get_offsets()) for group in figure.axes[0].collections]
    assert len(dots) == len(many)
    for run in many:
        shown = np.sort([d[:, 0] for d in dots], axis=1)
        assert any(np.allclose(row, np.sort(run.last_evaluation()["client_accuracy"])) for row in shown)


def test_layers_are_in_the_order_of_the_network_and_empty_ones_crossed(many: list[Run]) -> None:
    axes = layer_density(many).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)
    crosses = [line for line in axes.lines if line.get_marker() == "x" and _xs(line)]
    assert len(crosses) == 4  # three seeds at density 0.05 and one run at 0.02
    assert {round(_ys(line)[0]) for line in crosses} == {LAYERS.index("layer3.0.conv1")}


def test_settings_look_different(many: list[Run]) -> None:
    handles = accuracy_against_rounds(many).legends[0].get_lines()
    looks = {(line.get_color(), line.get_linestyle()) for line in handles}
    assert len(looks) == len(handles) == 10
    assert len({line.get_color() for line in handles}) == 10


def test_more_settings_than_colours_differ_by_dash(many: list[Run]) -> None:
    groups = groups_by(many[:1] * 23, [f"setting {i}" for i in range(23)])
    assert len({(group.colour, group.dash) for group in groups}) == 23
    widths = [group.width for group in groups]
    assert sorted(widths, reverse=True) == widths
    assert len(set(widths)) == 23


def test_a_curve_beneath_an_equal_one_shows(tmp_path: Path) -> None:
    """The lower curve is thicker, and markers are at different points, except the last, which both have."""
    for name in ("a", "b"):
        write_sample_run(tmp_path / name, algorithm="fedavg", rounds=40)
    text = (tmp_path / "b" / "config.yaml").read_text()
    (tmp_path / "b" / "config.yaml").write_text(text + "optimizer: {lr: 0.5}\n")
    below, above = accuracy_against_rounds(load_runs([tmp_path])).axes[0].lines
    assert _ys(below) == _ys(above)
    assert below.get_linewidth() > above.get_linewidth() + 1
    marks = [set(line.get_markevery()) for line in (below, above)]  # type: ignore[arg-type]
    assert marks[0] & marks[1] == {39}


def test_every_seed_is_in_the_mean_over_bytes(tmp_path: Path) -> None:
    """Bytes at the same round differ, so accuracy and bytes are averaged per round."""
    for seed in (0, 1, 2):
        folder = write_sample_run(tmp_path / f"{seed}", seed=seed, rounds=6)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [
            {**row, "uplink_bytes": row["uplink_bytes"] + 1000 * seed} if "phase" in row else row
            for row in rows
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = load_runs([tmp_path])
    figure = accuracy_against_bytes(runs)
    (mean,) = [line for line in figure.axes[0].lines if line.get_marker() != "None" and len(_xs(line)) > 2]
    assert _texts(figure)[0] == "SSFL, density 0.5 (mean of 3 runs)"
    np.testing.assert_allclose(_xs(mean), np.mean([evaluated_megabytes(run) for run in runs], axis=0))
    accuracy = [[row["global_accuracy"] for row in run.evaluations] for run in runs]
    np.testing.assert_allclose(_ys(mean), np.mean(accuracy, axis=0))


def test_means_are_over_the_evaluations_that_all_have() -> None:
    first = {(1, "round"): (1.0, 0.1), (2, "round"): (2.0, 0.2), (2, "phase"): (3.0, 0.5)}
    second = {(2, "round"): (4.0, 0.4), (2, "phase"): (5.0, 0.7)}
    np.testing.assert_allclose(mean_curve([first, second]), [(3.0, 0.3), (4.0, 0.6)])


def test_the_last_point_has_its_marker_and_ticks_are_round_numbers_of_rounds(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", rounds=37)
    figure = accuracy_against_rounds([load_run(tmp_path / "run")])
    figure.draw_without_rendering()
    (line,) = figure.axes[0].lines
    assert 36 in line.get_markevery()  # type: ignore[operator]
    steps = set(np.diff(figure.axes[0].get_xticks()).tolist())
    assert len(steps) == 1
    assert steps <= {1, 2, 5, 10, 20}


def test_every_point_of_both_panels_is_within_the_axes(tmp_path: Path) -> None:
    """The panels share the vertical axis, although clients' models are often 20 points above the global one."""
    folder = write_sample_run(tmp_path / "run", rounds=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] == "round":
            row |= {"global_accuracy": 0.1 * row["round"], "client_accuracy_mean": 0.2 * row["round"]}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for axes in accuracy_against_rounds([load_run(folder)]).axes:
        low, high = axes.get_ylim()
        assert all(low < y < high for line in axes.lines for y in _ys(line))


@pytest.mark.parametrize(("best", "top"), [(0.97, 1.0), (1.0, 1.0), (0.3, None)])
def test_axes_reach_100_percent_and_not_beyond(best: float, top: float | None, tmp_path: Path) -> None:
    folder = write_sample_run(tmp_path / "run", rounds=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] == "round":
            share = best * row["round"] / 4
            row |= {
                "global_accuracy": share,
                "client_accuracy_mean": share,
                "client_accuracy": [share, share / 2],
            }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(folder)
    for axes in accuracy_against_rounds([run]).axes:
        high = axes.get_ylim()[1]
        assert high == top if top is not None else best < high < 0.5
    right = client_accuracy_spread([run]).axes[0].get_xlim()[1]
    assert right == pytest.approx(1.01) if top is not None else right < 0.5


def test_the_spread_shows_the_tables_mean_and_deviation(one: list[Run]) -> None:
    axes = client_accuracy_spread(one).axes[0]
    (row,) = one
    last = row.last_evaluation()
    (box,) = axes.patches
    (line,) = axes.lines
    mean, std = last["client_accuracy_mean"], last["client_accuracy_std"]
    assert isinstance(box, Rectangle)
    assert (box.get_x(), box.get_width()) == pytest.approx((mean - std, 2 * std))
    assert _xs(line) == pytest.approx([mean, mean])


def test_write_report_makes_every_file_and_says_so(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "runs" / "a", rounds=3)
    write_sample_run(tmp_path / "runs" / "b", algorithm="fedavg", rounds=3, stop_after=1)
    report = write_report([tmp_path / "runs"], tmp_path / "deep" / "out")
    names = ["comparison.md", "comparison.csv", "accuracy_rounds.png", "accuracy_bytes.png"]
    assert [path.name for path in report.paths] == [*names, "client_accuracy.png", "layer_density.png"]
    assert all(path.stat().st_size for path in report.paths)
    assert "1 of 2 runs did not finish" in report.text
    assert str(report.paths[0]) in str(report)


def test_plots_that_would_be_empty_are_not_written(tmp_path: Path) -> None:
    write_sample_run(tmp_path / "run", algorithm="fedavg", rounds=2)
    names = [path.name for path in write_report([tmp_path], tmp_path / "out").paths]
    assert "layer_density.png" not in names
    assert "accuracy_rounds.png" in names


def test_the_plots_alone_draw_made_up_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path / "sample")
    assert (tmp_path / "sample" / "layer_density.png").is_file()
    assert "Over seeds, finished runs only" in capsys.readouterr().out
