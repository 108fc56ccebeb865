"""The parts of a start add up to the whole command, and imports are counted once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench_start import PARTS, StartError, parts_of, round_seconds, start

STDERR = """
import time: self [us] | cumulative | imported package
import time:    500000 |     500000 | outside
start_probe: begin setup 10.0
import time:    250000 |     250000 |   inside
import time:    250000 |     500000 | around
start_probe: end setup 12.0
measured this machine once
start_probe: begin calibration 12.0
start_probe: end calibration 15.0
start_probe: begin rounds 15.0
import time:    500000 |     500000 | in a round
start_probe: end rounds 19.0
"""


def test_parts_by_hand() -> None:
    """Two seconds of setup, of which half a second is imports; a round keeps its imports; the rest is not named."""
    assert parts_of(STDERR.splitlines(), rounds=4.0, total=20.0) == {
        "import": 1.0,
        "setup": pytest.approx(1.5),
        "calibration": pytest.approx(3.0),
        "rounds": 4.0,
        "report": 0.0,
        "rest": pytest.approx(20.0 - 1.0 - 1.5 - 3.0 - 4.0),
    }


def test_rounds_and_phases_count() -> None:
    events = [
        {"event": "run_started"},
        {"event": "phase", "wall_seconds": 1.0},
        {"event": "round", "wall_seconds": 2.0},
        {"event": "run_finished", "wall_seconds": 9.0},
    ]
    assert round_seconds("\n".join(map(json.dumps, events))) == 3.0


def test_a_start_has_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = start(["preset=digits", "training.comm_round=1", "training.epochs=1"], tmp_path)
    assert list(found) == list(PARTS)
    assert all(seconds > 0 for seconds in found.values())
    busy = "the machine was busy" in capsys.readouterr().err
    assert busy or list((tmp_path / "ssfl" / "calibration").glob("*.json"))


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"(?s)exit code 2.*no such key"):
        start(["preset=digits", "training.comm_runds=1"], tmp_path)
