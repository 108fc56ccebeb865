"""Plots show the numbers of the rows, for one run and for many, finished or not; the report's files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssfl.report import Run, load_run, load_runs, write_report
from ssfl.report.plots import (
    accuracy_against_bytes,
    accuracy_against_rounds,
    client_accuracy_spread,
    evaluated_megabytes,
    layer_density,
    main,
)
from ssfl.report.sample import LAYERS, write_sample_run

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
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said
    assert all("no" in text for text in said)


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
    looks = {(line.get_color(), line.get_marker()) for line in handles}
    assert len(looks) == len(handles) == 10


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
