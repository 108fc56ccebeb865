"""Flat curves and paired differences: by hand, and compared with scipy's t test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from ssfl.report.runs.settings import settings
from ssfl.report.studies.claims import conclusion
from ssfl.report.studies.flatness import flatness, late_accuracy, mean_curve
from ssfl.report.studies.flatness import main as flatness_main
from ssfl.report.studies.paired import by_seed, difference
from ssfl.report.studies.paired import main as paired_main
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
    assert conclusion(found) == "inconclusive"
    narrow = difference({1: 0.519, 2: 0.520, 3: 0.521}, {1: 0.50, 2: 0.50, 3: 0.50})
    assert narrow is not None
    assert conclusion(narrow) == "holds"
    below = difference({1: 0.481, 2: 0.480}, {1: 0.5, 2: 0.5})
    assert below is not None
    assert conclusion(below) == "does not hold"
    alone = difference({1: 0.4}, {1: 0.1})
    assert alone is not None
    assert conclusion(alone) == "inconclusive"


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
