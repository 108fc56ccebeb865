"""Flat curves and paired differences: by hand, and compared with scipy's t test; a page from invented runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from ssfl.report.runs import RunError
from ssfl.report.runs.collect import collect
from ssfl.report.runs.settings import settings
from ssfl.report.studies.flatness import flatness, late_accuracy, mean_curve
from ssfl.report.studies.flatness import main as flatness_main
from ssfl.report.studies.paired import by_seed, difference
from ssfl.report.studies.paired import main as paired_main
from ssfl.report.studies.study import megabytes_until, verdict, write_study
from tests.support.packed_runs import write_sweep

RISING = tuple(0.02 * n for n in range(1, 21))
LEVEL = (*RISING[:15], 0.3, 0.301, 0.3, 0.302, 0.3)
ACCURACIES = st.dictionaries(st.integers(1, 9), st.floats(0, 1), min_size=2, max_size=6)


# ── flat curves ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_rule_by_hand() -> None:
    """100 rounds, evaluated every 5: the last tenth has rounds 95 and 100, the tenth before 85 and 90."""
    curve = dict.fromkeys(range(5, 85, 5), 0.5) | {85: 0.60, 90: 0.61, 95: 0.60, 100: 0.618}
    found = flatness(curve, 100)
    assert found is not None
    assert found.gain == pytest.approx((0.60 + 0.618) / 2 - (0.60 + 0.61) / 2)
    assert found.flat
    assert str(found) == "+0.40"
    steep = flatness(curve | {100: 0.632}, 100)
    assert steep is not None
    assert not steep.flat
    assert str(steep) == "+1.10 (not flat)"
    falling = flatness(curve | {100: 0.3}, 100)
    assert falling is not None
    assert falling.flat


@pytest.mark.parametrize("curve", [{}, {100: 0.5}, {85: 0.5}, {5: 0.1, 50: 0.2}])
def test_too_few_evaluations_are_no_proof(curve: dict[int, float]) -> None:
    assert flatness(curve, 100) is None


def test_curves_are_averaged_where_all_seeds_were_evaluated(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [("ssfl", 1, (0.2, 0.4, 0.6)), ("ssfl", 2, (0.4, 0.6))])
    (setting,) = settings([sweep])
    assert mean_curve(setting.finished, "global_accuracy") == pytest.approx({2: 0.3, 4: 0.5})
    assert mean_curve(setting.finished, "nothing") == {}


def test_a_result_is_the_mean_of_the_last_tenth_or_what_a_closing_phase_made(tmp_path: Path) -> None:
    """40 rounds, evaluated every second: 38 and 40 are the last tenth."""
    curve = [0.3] * 18 + [0.4, 0.5]
    runs = write_sweep(tmp_path / "sweep", [("fedavg_ft", 1, curve), ("ssfl", 1, curve)])
    tuned, plain = (setting.runs[0] for setting in settings([runs]))
    assert (
        late_accuracy(plain, "global_accuracy")
        == late_accuracy(tuned, "global_accuracy")
        == pytest.approx(0.45)
    )
    assert late_accuracy(plain, "client_accuracy_mean") == pytest.approx(0.55)
    assert late_accuracy(tuned, "client_accuracy_mean") == 0.9
    assert late_accuracy(plain, "global_validation_accuracy") is None
    open_one = write_sweep(tmp_path / "open", [("ssfl", 1, curve)], finished=False)
    assert late_accuracy(settings([open_one])[0].runs[0], "global_accuracy") is None


def test_a_fine_tuning_after_the_last_round_is_no_point_of_the_curve(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", [("fedavg_ft", 1, (0.2, 0.4))])
    (setting,) = settings([sweep])
    assert mean_curve(setting.finished, "client_accuracy_mean") == pytest.approx({2: 0.3, 4: 0.5})


@pytest.mark.parametrize(("curve", "code"), [(RISING, 1), (LEVEL, 0)])
def test_the_script_ends_with_1_where_a_curve_still_rises(
    curve: tuple[float, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path / "sweep", [("ssfl", 1, curve), ("ssfl", 2, curve)])
    assert flatness_main([str(sweep)]) == code
    assert ("(not flat)" in capsys.readouterr().out) == bool(code)
    assert flatness_main([str(tmp_path / "nowhere")]) == 1


# ── differences ──────────────────────────────────────────────────────────────────────────────────────────────────
@given(ACCURACIES, ACCURACIES)
def test_the_interval_is_the_paired_t_tests(first: dict[int, float], second: dict[int, float]) -> None:
    shared = sorted(first.keys() & second.keys())
    found = difference(first, second)
    if not shared:
        assert found is None
        return
    assert found is not None
    values = [first[s] - second[s] for s in shared]
    assert list(found.by_seed) == shared
    assert found.mean == pytest.approx(sum(values) / len(values))
    if len(shared) == 1:
        assert found.interval is None
        assert not found.excludes_zero
    elif max(values) - min(values) > 1e-6:  # otherwise scipy divides by a deviation of 0
        theirs = ttest_rel([first[s] for s in shared], [second[s] for s in shared]).confidence_interval(0.95)
        assert found.interval == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert found.excludes_zero == (theirs.low > 0 or theirs.high < 0)


def test_three_seeds_by_hand() -> None:
    """Differences 1, 2, 3 points: s = 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt(3) = 2.4842."""
    found = difference({1: 0.51, 2: 0.52, 3: 0.53}, {1: 0.50, 2: 0.50, 3: 0.50, 4: 0.1})
    assert str(found) == "+2.00 [-0.48, +4.48], n = 3"
    assert found is not None
    assert verdict(found) == "no difference"
    narrow = difference({1: 0.519, 2: 0.520, 3: 0.521}, {1: 0.50, 2: 0.50, 3: 0.50})
    assert narrow is not None
    assert verdict(narrow) == "above"
    below = difference({1: 0.481, 2: 0.480}, {1: 0.5, 2: 0.5})
    assert below is not None
    assert verdict(below) == "below"
    alone = difference({1: 0.4}, {1: 0.1})
    assert alone is not None
    assert verdict(alone) == "one seed: nothing"


def test_differences_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [("ssfl", s, (0.2, 0.4 + 0.01 * s)) for s in (1, 2)] + [
        ("fedavg_ft", s, (0.2, 0.4)) for s in (1, 2)
    ]
    sweep = write_sweep(tmp_path / "sweep", runs)
    assert paired_main([str(sweep), "SSFL, density 0.5", "FedAvg-FT"]) == 0
    assert "global_accuracy: +1.50 [-4.85, +7.85], n = 2" in capsys.readouterr().out
    assert paired_main([str(sweep), "SSFL", "FedAvg-FT"]) == 2
    assert "there are: SSFL, density 0.5; FedAvg-FT" in capsys.readouterr().err


def test_runs_that_did_not_finish_are_in_no_difference(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", [("ssfl", 1, (0.2, 0.4))], finished=False)
    (setting,) = settings([tmp_path / "sweep"])
    assert by_seed(setting, "global_accuracy") == {}


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────
def study(folder: Path) -> Path:
    """An experiment with FedAvg(-FT) and SSFL finished, and a setting that was not run."""
    runs = [("ssfl", s, (0.2, 0.3, 0.41 + 0.001 * s)) for s in (1, 2, 3)]
    runs += [("fedavg_ft", s, (0.2, 0.3, 0.4)) for s in (1, 2, 3)]
    folder.mkdir()
    collect([write_sweep(folder.parent / "sweep", runs)], folder / "runs.json", with_fedavg=True)
    both = ["global_accuracy", "client_accuracy_mean"]
    stored = {
        "title": "Made up",
        "settings": [["FedAvg", 1], ["FedAvg-FT", 1], ["SSFL", 0.5], ["SparsyFed", 0.5]],
        "comparisons": [
            {"claim": "SSFL >= FedAvg", "first": ["SSFL", 0.5], "second": ["FedAvg", 1], "accuracies": both},
            {"claim": "not run", "first": ["SSFL", 0.5], "second": ["SparsyFed", 0.5], "accuracies": both},
        ],
        "thresholds": [0.3, 0.9],
    }
    (folder / "study.json").write_text(json.dumps(stored))
    return folder


def test_a_page_says_what_there_is_and_what_is_missing(tmp_path: Path) -> None:
    page = write_study(study(tmp_path / "mine")).read_text()
    assert "**Not finished yet, so not in the tables below:** SparsyFed at 0.5." in page
    assert (
        "| SSFL >= FedAvg | SSFL at 0.5 − FedAvg | global | +1.20 [+0.95, +1.45], n = 3 | +1.1, +1.2, +1.3 | above |"
        in page
    )
    assert "not run" not in page
    assert "| FedAvg-FT | 1 |" in page
    (fedavg,) = [line for line in page.splitlines() if line.startswith("| FedAvg | 1 |")]
    assert "| 40.0 ± 0.0 | 50.0 ± 0.0 |" in fedavg
    assert "| SSFL at 0.5 | 0.088 | not reached |" in page
    assert "Code: 0123456789abcdef. Commit c0ffee; instruction set AVX512." in page
    assert {p.name for p in (tmp_path / "mine").glob("*.png")} == {"rounds.png", "bytes.png", "sparsity.png"}


def test_a_setting_that_still_rises_is_in_no_table(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    rising = [("ssfl", s, RISING) for s in (1, 2, 3)] + [("fedavg_ft", s, LEVEL) for s in (1, 2, 3)]
    (folder / "runs.json").unlink()
    collect([write_sweep(tmp_path / "other", rising)], folder / "runs.json", with_fedavg=True)
    page = write_study(folder, pictures=False).read_text()
    line = "SSFL at 0.5 (global 39.0 ± 0.0 %, clients 49.0 ± 0.0 %; last tenth global +4.00 (not flat) points"
    assert f"**Finished, but not flat by the rule, so not in the tables below:** {line}" in page
    assert "| SSFL |" not in page
    assert "| FedAvg | 1 |" in page


def test_bytes_until_an_accuracy_count_the_scoring(tmp_path: Path) -> None:
    (setting,) = [s for s in settings([study(tmp_path / "mine") / "runs.json"]) if s.method == "SSFL"]
    assert megabytes_until(setting.finished[0], 0.25) == pytest.approx((2 * 40_000 + 4 * 2 * 1000) / 1e6)
    assert megabytes_until(setting.finished[0], 0.99) is None


def test_a_damaged_study_is_one_line(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    (folder / "study.json").write_text("{}")
    with pytest.raises(RunError, match=r"study\.json: cannot be read as a study"):
        write_study(folder)
