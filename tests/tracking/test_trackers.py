"""Broadcast, wandb, TensorBoard, and the choice of trackers by the configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssfl.config import Config
from ssfl.tracking import (
    Broadcast,
    ConsoleProgress,
    TensorBoardTracker,
    TrackingError,
    WandbTracker,
    check_trackers,
    trackers_of,
)

SCORE = {"event": "phase", "phase": "score", "round": 0, "downlink_bytes": 7, "uplink_bytes": 7}
ROUND_1 = {
    "event": "round",
    "phase": "train",
    "round": 1,
    "global_accuracy": 0.5,
    "train_loss_last_epoch": None,
}
FINISHED = {"event": "run_finished", "rounds": 1, "bytes_ratio": 2.0}


class Listener:
    """Records the received events."""

    def __init__(self, heard: list[str], name: str, broken: bool = False) -> None:
        self.heard, self.name, self.broken = heard, name, broken

    def record(self, event: Mapping[str, Any]) -> None:
        self.heard.append(f"{self.name} {event['event']}")

    def close(self) -> None:
        self.heard.append(f"{self.name} closed")
        if self.broken:
            raise OSError("disk full")


class FakeRun:
    """The part of wandb's run that the adapter uses."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: list[tuple[str, str | None]] = []
        self.ended = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.ended = True


def _fake_wandb(monkeypatch: pytest.MonkeyPatch, refuse: str = "") -> tuple[FakeRun, list[dict[str, Any]]]:
    run, calls = FakeRun(), []

    class Error(Exception):
        pass

    def init(**settings: Any) -> FakeRun:
        if refuse:
            raise Error(refuse)
        calls.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Error))
    return run, calls


def test_broadcast_tells_all_in_order_and_closes_all() -> None:
    heard: list[str] = []
    broadcast = Broadcast([Listener(heard, "a", broken=True), Listener(heard, "b")])
    broadcast.record({"event": "round"})
    with pytest.raises(OSError, match="disk full"):
        broadcast.close()
    assert heard == ["a round", "b round", "a closed", "b closed"]


def test_wandb_gets_scalars_over_the_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, calls = _fake_wandb(monkeypatch)
    (tmp_path / "config.yaml").write_text("model: {dense_ratio: 0.5}\n")
    tracker = WandbTracker("offline", "study", "ssfl-5", tmp_path)
    for event in (SCORE, ROUND_1, FINISHED):
        tracker.record(event)
    tracker.close()
    assert calls[0]["mode"] == "offline"
    assert calls[0]["project"] == "study"
    assert calls[0]["config"] == {"model": {"dense_ratio": 0.5}}
    assert run.metrics == [("round", None), ("*", "round")]
    assert run.logged == [
        {"score/downlink_bytes": 7, "score/uplink_bytes": 7, "round": 0},
        {"global_accuracy": 0.5, "round": 1},
    ]
    assert run.summary == {"rounds": 1, "bytes_ratio": 2.0}
    tracker.record(
        {**FINISHED, "global_accuracy": 0.9, "client_accuracy_mean": 0.8, "aggregation_seconds": 1.0}
    )
    assert sorted(run.summary)[:2] == ["accuracy_clients", "accuracy_global"]
    assert (run.summary["accuracy_clients"], run.summary["accuracy_global"]) == (0.8, 0.9)
    assert run.ended


def test_a_resumed_run_goes_on_in_the_same_wandb_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, calls = _fake_wandb(monkeypatch)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        WandbTracker("offline", "study", "ssfl-5", folder)
    assert calls[0]["id"] == calls[1]["id"] != calls[2]["id"]
    assert calls[1]["resume"] == "allow"


def test_wandb_that_does_not_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_wandb(monkeypatch, refuse="api_key not\nconfigured")
    with pytest.raises(TrackingError, match=r"api_key not configured.*wandb login.*wandb\.mode=offline"):
        WandbTracker("online", "study", "ssfl-5", tmp_path)


def test_missing_packages_say_how_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(TrackingError, match=r"bash setup.sh --with=wandb"):
        WandbTracker("offline", "study", "ssfl-5", tmp_path)
    with pytest.raises(TrackingError, match=r"bash setup.sh --with=tensorboard"):
        TensorBoardTracker(tmp_path)
    config = Config()
    check_trackers(config)  # no tracker is configured, so no package is needed
    with pytest.raises(TrackingError, match="wandb"):
        check_trackers(replace(config, wandb=replace(config.wandb, mode="online")))
    with pytest.raises(TrackingError, match="tensorboard"):
        check_trackers(replace(config, tracking=replace(config.tracking, tensorboard=True)))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoardTracker(tmp_path)
    tracker.record(SCORE)
    for number, accuracy in ((1, 0.5), (2, 0.6), (3, 0.7)):
        tracker.record({**ROUND_1, "round": number, "global_accuracy": accuracy})
    tracker.close()
    resumed = TensorBoardTracker(tmp_path)  # round 3 came after the last checkpoint
    resumed.record({"event": "resumed", "round": 2})
    resumed.record({**ROUND_1, "round": 3, "global_accuracy": 0.75})
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, round(event.value, 4)) for event in events.Scalars("round/global_accuracy")]
    assert found == [(1, 0.5), (2, 0.6), (3, 0.75)]
    assert events.Scalars("score/uplink_bytes")[0].value == 7


def test_a_plain_configuration_has_a_console_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trackers = trackers_of(Config(), tmp_path)
    assert [type(tracker) for tracker in trackers] == [ConsoleProgress]
    trackers[0].record({"event": "warning", "message": "hot"})
    trackers[0].close()
    assert capsys.readouterr() == ("", "warning: hot\n")


def test_json_goes_to_stdout_and_the_argument_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tracker,) = trackers_of(Config(), tmp_path, console="json")
    tracker.record(SCORE)
    tracker.close()
    out, err = capsys.readouterr()
    assert json.loads(out) == SCORE
    assert err == ""


def test_all_trackers_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    _fake_wandb(monkeypatch)
    config = Config()
    config = replace(
        config,
        wandb=replace(config.wandb, mode="offline"),
        tracking=replace(config.tracking, tensorboard=True, console="quiet"),
    )
    trackers = trackers_of(config, tmp_path)
    assert [type(tracker) for tracker in trackers] == [ConsoleProgress, WandbTracker, TensorBoardTracker]
    Broadcast(trackers).close()


def test_observers_are_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    broadcast = Broadcast([Listener(heard, "one"), Listener(heard, "two", broken=True)])
    with pytest.raises(OSError, match="disk full"):
        broadcast.close()
    broadcast.close()
    assert sorted(heard) == ["one closed", "two closed"]


def test_a_tracker_that_cannot_start_closes_those_that_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, _ = _fake_wandb(monkeypatch)

    def refuse(*_: object) -> None:
        raise OSError("no terminal")

    monkeypatch.setattr("ssfl.tracking.choose.ConsoleProgress", refuse)
    config = Config()
    with pytest.raises(OSError, match="no terminal"):
        trackers_of(replace(config, wandb=replace(config.wandb, mode="offline")), tmp_path)
    assert run.ended


def test_a_spoiled_line_of_the_past_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'\0\n{"event"}\n[1]\n' + json.dumps(SCORE).encode() + b"\n")
    (console,) = trackers_of(Config(), tmp_path)
    console.close()
