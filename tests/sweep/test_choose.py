"""`ssfl sweep --choose`: small real runs, the choice, the extension of the grid, resume and second start."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssfl.cli import main
from ssfl.config import ConfigError
from ssfl.report.runs import RunError
from ssfl.report.runs.run import Run
from ssfl.report.studies.choice import Choice, Trial, read_choice, score_of, write_choice
from ssfl.report.studies.choice import main as choice_main
from ssfl.sweep import sweep
from ssfl.sweep.cells import SweepCell, cells_of
from ssfl.sweep.choose import Search, keep, next_value, search_of, widened
from ssfl.sweep.folder import read_cells

SMALL = (
    "preset=digits",
    "training.comm_round=1",
    "training.client_num_in_total=3",
    "training.client_num_per_round=2",
    "dataset.validation_portion=0.2",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "engine.convolutions=direct",
)


def choice(scores: Sequence[tuple[str, float, float | None]]) -> Choice:
    trials = tuple(Trial(setting, setting, value, score, 1, 60) for setting, value, score in scores)
    return Choice("optimizer.lr", "validation_accuracy", "highest", trials)


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_highest_score_wins_and_the_first_of_equals() -> None:
    found = choice(
        [
            ("a", 0.1, 0.5),
            ("a", 0.3, 0.5),
            ("a", 0.03, 0.4),
            ("b", 0.1, None),
            ("b", 0.3, 0.2),
            ("c", 0.1, None),
        ]
    )
    assert {s: t.value for s, t in found.best().items()} == {"a": 0.1, "b": 0.3}
    assert "| c | 0.1 | did not finish |  |" in found.table()
    assert "| a | 0.1 | 50.00 | yes |" in found.table()
    assert found.settings() == ["a", "b", "c"]


def test_test_accuracies_are_not_chosen_by() -> None:
    rows = (
        {"event": "round", "round": 1, "global_accuracy": 0.9, "client_accuracy_mean": 0.9},
        {"event": "run_finished"},
    )
    with pytest.raises(RunError, match=r"set dataset\.validation_portion above 0"):
        score_of(Run(Path("mine"), {}, rows), "validation_accuracy")
    both = {"global_validation_accuracy": 0.6, "client_validation_accuracy_mean": 0.7}
    run = Run(Path("mine"), {}, ({**rows[0], **both}, rows[1]))
    assert (score_of(run, "validation_accuracy"), score_of(run, "client_validation_accuracy")) == (0.6, 0.7)
    auc = Run(Path("mine"), {}, ({**rows[0], **both, "global_validation_auc": 0.8}, rows[1]))
    assert score_of(auc, "validation_auc") == 0.8
    with pytest.raises(RunError, match=r"tracking\.metrics=imbalanced"):
        score_of(run, "validation_auc")
    personal = Run(Path("mine"), {}, ({**rows[0], **both, "global_validation_accuracy": None}, rows[1]))
    assert score_of(personal, "validation_accuracy") == 0.7
    assert score_of(Run(Path("mine"), {}, rows[:1]), "validation_accuracy") is None


def cell(setting: str, lr: str) -> SweepCell:
    label = f"algorithm={setting} optimizer.lr={lr}"
    return SweepCell(
        f"{setting}_lr{lr}", label, ("preset=digits", f"algorithm={setting}", f"optimizer.lr={lr}"), 60
    )


SCORES: dict[str, tuple[dict[float, float | None], float | None]] = {
    "low edge": ({0.1: 0.5, 0.03: 0.9}, 0.009),
    "high edge": ({0.1: 0.9, 0.03: 0.5}, 0.33),
    "inside, the higher neighbour better": ({0.01: 0.1, 0.03: 0.9, 0.1: 0.5}, 0.055),
    "inside, the lower neighbour better": ({0.01: 0.6, 0.03: 0.9, 0.1: 0.5}, 0.017),
    "a neighbour that did not finish": ({0.03: 0.9, 0.01: 0.1, 0.1: None}, 0.017),
    "one value": ({0.1: 0.9}, None),
    "nothing finished": ({0.1: None, 0.3: None}, 0.033),
    "one value, not finished": ({0.1: None}, None),
}


@pytest.mark.parametrize("case", SCORES)
def test_the_next_value_is_beyond_a_winning_edge_or_beside_the_best(case: str) -> None:
    scores, expected = SCORES[case]
    assert next_value(choice([("a", value, score) for value, score in scores.items()]), "a") == expected


def test_every_setting_gets_a_trial_while_an_edge_wins_somewhere() -> None:
    search = Search("optimizer.lr", "validation_accuracy")
    cells = [cell(setting, lr) for setting in ("ssfl", "fedavg") for lr in ("0.01", "0.03", "0.1")]
    inside = [("algorithm=ssfl", 0.01, 0.1), ("algorithm=ssfl", 0.03, 0.9), ("algorithm=ssfl", 0.1, 0.2)]
    edge = [("algorithm=fedavg", 0.01, 0.1), ("algorithm=fedavg", 0.03, 0.2), ("algorithm=fedavg", 0.1, 0.9)]
    more = widened(search, choice(inside + edge), cells)
    assert more[:6] == cells
    added = ["algorithm=ssfl optimizer.lr=0.055", "algorithm=fedavg optimizer.lr=0.33"]
    assert [c.label for c in more[6:]] == added
    assert [c.overrides[-1] for c in more[6:]] == ["optimizer.lr=0.055", "optimizer.lr=0.33"]
    assert len({c.name for c in more}) == len(more)
    both_inside = inside + [(s.replace("ssfl", "fedavg"), value, score) for s, value, score in inside]
    assert widened(search, choice(both_inside), cells) == cells


def test_every_setting_gets_a_lower_trial_if_no_rate_of_one_finished() -> None:
    search = Search("optimizer.lr", "validation_accuracy")
    cells = [cell("ssfl", lr) for lr in ("0.1", "0.3")]
    diverged = choice([("algorithm=ssfl", 0.1, None), ("algorithm=ssfl", 0.3, None)])
    more = widened(search, diverged, cells)
    assert [c.label for c in more[2:]] == ["algorithm=ssfl optimizer.lr=0.033"]


def test_the_note_of_a_search_says_whether_any_rate_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(choice([("a", 0.1, None), ("a", 0.3, None), ("b", 0.1, 0.9), ("b", 0.3, 0.5)]), tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "note: a: no tried optimizer.lr finished",
        "note: b: the best optimizer.lr is at the edge of the tried values",
    ]


# ── wrong options ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "choose", "by", "says"),
    [
        (
            ("optimizer.lr=0.1,0.3",),
            "momentum",
            "validation_accuracy",
            "must be a key with several values: optimizer.lr",
        ),
        (
            ("optimizer.lr=0.1,0.3",),
            "lr",
            "accuracy",
            "must be one of validation_accuracy, client_validation_accuracy",
        ),
        (
            ("optimizer.lr=0.1,0.3", "dataset.validation_portion=0"),
            "lr",
            "validation_accuracy",
            "no rows are held out",
        ),
        (
            ("optimizer.lr=0.1,0.3",),
            "lr",
            "validation_auc",
            "needs tracking.metrics=imbalanced",
        ),
    ],
)
def test_refusals_before_anything_runs(words: tuple[str, ...], choose: str, by: str, says: str) -> None:
    cells, _ = cells_of([*SMALL, *words], ())
    with pytest.raises(ConfigError, match=says):
        search_of(choose, by, cells)


def test_a_line_without_the_key_is_refused() -> None:
    cells, _ = cells_of(SMALL, (("algorithm=ssfl", "optimizer.lr=0.1,0.3"), ("algorithm=fedavg",)))
    with pytest.raises(ConfigError, match="--choose lr: has no value in the line 'algorithm=fedavg'"):
        search_of("lr", "validation_accuracy", cells)


def test_a_refusal_is_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "mine"
    words = [w for w in SMALL if "validation" not in w]
    assert main(["sweep", "--into", str(into), "--choose", "lr", *words, "optimizer.lr=0.1,0.3"]) == 2
    assert capsys.readouterr().err.startswith("ssfl: dataset.validation_portion=0.0: no rows are held out")
    assert not into.exists()


# ── whole searches ───────────────────────────────────────────────────────────────────────────────────────────────
def test_a_search_widens_its_grid_and_keeps_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both rates are much too small and the larger is better, so the grid must grow upwards."""
    words = [*SMALL, "algorithm=fedavg,dispfl", "optimizer.lr=0.001,0.01"]
    into = tmp_path / "search"
    assert sweep.start_sweep(words, into=into, choose=("lr", "validation_accuracy")) == 0
    found = read_choice(into / "choice.json")
    by_setting: dict[str, list[float]] = {}
    for trial in found.trials:
        assert isinstance(trial.value, float)
        by_setting.setdefault(trial.setting, []).append(trial.value)
    assert list(by_setting) == ["algorithm=fedavg", "algorithm=dispfl"]
    first, second = by_setting.values()
    assert len(first) == len(second)  # equal budgets
    assert {0.001, 0.01, 0.1} <= set(first)
    assert first == sorted(first)
    stored = json.loads((into / "choice.json").read_text())
    assert stored["chosen"] == {setting: trial.value for setting, trial in found.best().items()}
    for trial in found.trials:
        folders = list(
            into.glob(f"runs/*{trial.setting.partition('=')[2]}*lr{trial.value:g}/*/metrics.jsonl")
        )
        assert len(folders) == 1
    assert stored["chosen"]["algorithm=fedavg"] > 0.01
    assert "recorded: " in capsys.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in into.rglob("metrics.jsonl")}
    for resumed in (False, True):
        if resumed:
            assert sweep.resume_sweep(into) == 0
        else:
            assert sweep.start_sweep(words, into=into, choose=("lr", "validation_accuracy")) == 0
        assert {path: path.stat().st_mtime_ns for path in into.rglob("metrics.jsonl")} == again
        assert read_choice(into / "choice.json") == found


def test_a_resumed_search_widens_no_further_than_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest rate always wins, so the grid grows until the limit; nothing is trained."""

    def highest_wins(search: Search, folder: Path, cells: Sequence[SweepCell]) -> Choice:
        rates = sorted(float(c.label.partition("optimizer.lr=")[2]) for c in cells)
        return choice([("", rate, rate) for rate in rates])

    monkeypatch.setattr(sweep, "judged", highest_wins)
    passes = itertools.count(1)

    def interrupted_once(*_: object) -> list[SweepCell]:
        if next(passes) == 3:
            raise sweep._Stopped(sweep.INTERRUPTED)
        return []

    monkeypatch.setattr(sweep, "_run_cells", interrupted_once)
    into, words = tmp_path / "mine", [*SMALL, "optimizer.lr=1e-9,2e-9"]
    asked = ("lr", "validation_accuracy")
    assert sweep.start_sweep(words, into=into, choose=asked) == sweep.INTERRUPTED
    assert len(read_cells(into)) == 2 + 2
    for _ in range(2):
        assert sweep.resume_sweep(into) == 0
        assert len(read_cells(into)) == 2 + Search("lr", "validation_accuracy").widenings


# ── for scripts ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_script_reads_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "choice.json"
    write_choice(choice([("algorithm=ssfl", 0.1, 0.5), ("algorithm=ssfl", 0.3, 0.6), ("b", 0.1, 0.2)]), path)
    assert choice_main([str(path), "algorithm=ssfl"]) == 0
    assert capsys.readouterr().out == "0.3\n"
    assert choice_main([str(path), "unknown"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "unknown: searched in 0 settings, must be one; chosen settings: algorithm=ssfl; b" in shown.err
    assert choice_main([str(path), "unknown", "9"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, "using 9" in shown.err) == ("9\n", True)
    write_choice(choice([("half", 0.1, 0.5), ("tenth", 0.1, None)]), path)
    path.write_text(path.read_text().replace('"method": "tenth"', '"method": "half"'))
    assert choice_main([str(path), "half"]) == 1  # the method of two settings
    assert "half: searched in 2 settings, must be one; chosen settings: half" in capsys.readouterr().err
    assert choice_main([str(path), "tenth"]) == 1
    assert "tenth: no trial has a score" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"score": 0.5', '"score": "0.5"'))
    assert choice_main([str(path), "half"]) == 1
    assert "score '0.5' is no number" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{}")
    assert choice_main([str(tmp_path / "broken.json"), "b"]) == 1
    assert "cannot be read as a record of a choice" in capsys.readouterr().err


def test_a_close_choice_is_said() -> None:
    found = choice(
        [("a", 0.1, 0.4398), ("a", 0.03, 0.4396), ("a", 0.3, None), ("b", 0.1, 0.5), ("b", 0.3, 0.4)]
    )
    assert "Decided by less than 1 point (1 seed per trial" in found.close_calls(0.01)
    assert found.close_calls(0.01).endswith(": a: 0.1 over 0.03 by 0.02.\n")
    assert found.close_calls(0.0001) == ""
