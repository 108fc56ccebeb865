"""`ssfl doctor`: facts about the machine, the choice for a run, and printed settings that fix this choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssfl import assemble
from ssfl.assemble import measurement
from ssfl.assemble.execution import resolve_engine
from tests.support.assembled import config, run_setup

AUTO = ("engine.executor=auto", "engine.memory_format=auto", "engine.block=auto", "model.name=mlp")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measurement, "others_share", lambda since, now: 0.0)


def test_it_measures_anew_and_names_the_keys_that_fix_the_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assemble.show_doctor(config(*AUTO), measure=True) == 0
    assert "measurements removed: 0" in capsys.readouterr().out
    assert list(tmp_path.rglob("*.json"))
    assert assemble.show_doctor(config(*AUTO), measure=False) == 0
    shown = capsys.readouterr()
    assert shown.err == ""  # not measured again
    chosen = resolve_engine(config(*AUTO), run_setup(*AUTO)).engine
    fixed = shown.out.partition("to use the same settings on every machine: ")[2].split()
    again = config(*AUTO, *fixed)
    assert again.engine.executor == chosen.executor
    assert "auto" not in (again.engine.block, again.engine.memory_format, again.engine.kernels)
    measurement.forget_measurements()
    resolve_engine(again, run_setup(*AUTO, *fixed))
    assert not list(tmp_path.rglob("*.json"))  # no measurement is needed


def test_without_a_run_it_only_says_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "ssfl" / "calibration" / "a.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert assemble.show_doctor(None, measure=False) == 0
    assert f"1 in {kept.parent}" in capsys.readouterr().out
    assert assemble.show_doctor(None, measure=True) == 0
    assert "measurements removed: 1" in capsys.readouterr().out
    assert not kept.exists()
