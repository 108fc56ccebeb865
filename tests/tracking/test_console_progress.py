"""The output on the console in each mode."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest

from ssfl.tracking import ConsoleProgress, TrackingError
from ssfl.tracking.console import duration, size

STARTED: dict[str, Any] = {
    "event": "run_started",
    "algorithm": "ssfl",
    "model": "resnet18",
    "dataset": "cifar10",
    "clients": 100,
    "cohort": 10,
    "rounds": 4,
    "seed": 550,
    "parameters": 11_181_642,
}
WARNING: dict[str, Any] = {"event": "warning", "message": "the mask keeps nothing of [conv1]"}


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _round(number: int, evaluated: bool = True) -> dict[str, Any]:
    event = {"event": "round", "phase": "train", "round": number, "clients": 10}
    event |= {"downlink_bytes": 2_000_000, "uplink_bytes": 1_000_000, "train_flops": 5}
    if evaluated:
        event |= {"global_accuracy": 0.9, "client_accuracy_mean": 0.8, "client_accuracy_std": 0.05}
    return event


def _shown(
    mode: str, events: list[dict[str, Any]], step: float = 2.0, past: list[dict[str, Any]] | None = None
) -> str:
    stream, clock = io.StringIO(), Clock()
    console = ConsoleProgress(mode, total_rounds=4, stream=stream, past=past or (), clock=clock)
    for event in events:
        clock.now += step
        console.record(event)
    console.close()
    return stream.getvalue()


def test_plain_shows_a_line_an_evaluation() -> None:
    text = _shown("plain", [STARTED, *(_round(n, evaluated=n % 2 == 0) for n in (1, 2, 3, 4))])
    assert "resnet18 (11,181,642 parameters) on cifar10, 100 clients, 10 a round, 4 rounds, seed 550" in text
    assert re.findall(r"round (\d)/4", text) == ["2", "4"]
    assert "global 90.0 %  clients 80.0 ± 5.0 %  4.00 MB down  2.00 MB up" in text


def test_time_left_by_hand() -> None:
    # Created at 0 s; round 1 ends at 20 s, round 2 at 40 s: 20 s per round, two rounds to go.
    text = _shown("plain", [_round(1), _round(2)], step=20)
    assert "1:00 left" in text
    assert text.rstrip().endswith("0:40 left")


def test_a_short_first_round_says_nothing_of_the_others() -> None:
    text = _shown("plain", [_round(1), _round(2)])
    assert re.findall(r"([\d:]+) left", text) == ["0:04"]


def test_start_up_and_phases_are_no_part_of_the_time_left() -> None:
    """100 s until the run starts, 100 s of scoring, a first round of 10 s, then 2 s per round."""
    stream, clock = io.StringIO(), Clock()
    console = ConsoleProgress("plain", total_rounds=30, stream=stream, clock=clock)
    phase = {**_round(0, evaluated=False), "event": "phase", "phase": "score"}
    for seconds, event in ((100, STARTED), (100, phase), (10, _round(1)), (2, _round(2)), (2, _round(3))):
        clock.now += seconds
        console.record(event)
    assert re.findall(r"([\d:]+) left", stream.getvalue()) == ["4:50", "0:56", "0:54"]


def test_a_warning_within_a_round_takes_nothing_from_it() -> None:
    text = _shown("plain", [STARTED, _round(1), WARNING, _round(2)])
    assert "0:08 left" in text  # the warning came in the middle of round 2, which took 4 s


def test_plain_is_quiet_when_rounds_are_fast_but_shows_the_last() -> None:
    text = _shown("plain", [_round(n) for n in (1, 2, 3, 4)], step=0.1)
    assert re.findall(r"round (\d)/4", text) == ["1", "4"]


def test_a_resume_counts_earlier_bytes_and_measures_speed_anew() -> None:
    text = _shown(
        "plain", [{"event": "resumed", "round": 2}, _round(3)], past=[STARTED, _round(1), _round(2)], step=20
    )
    assert "resumed after round 2 of 4" in text
    assert "round 3/4" in text
    assert "6.00 MB down  3.00 MB up  0:20 left" in text


def test_quiet_shows_warnings_alone() -> None:
    text = _shown("quiet", [STARTED, _round(1), WARNING, _round(4)])
    assert text == "warning: the mask keeps nothing of [conv1]\n"


def test_json_shows_every_event() -> None:
    events = [STARTED, WARNING, _round(1)]
    assert [json.loads(line) for line in _shown("json", events).splitlines()] == events


def test_a_phase_shows_what_it_cost() -> None:
    phase = {**_round(0, evaluated=False), "event": "phase", "phase": "score", "clients": 100}
    text = _shown("plain", [{**phase, "density": 0.5, "layer_density": {"conv1": 0.5}}])
    assert text == "score: 100 clients  2.00 MB down  1.00 MB up  density 0.5\n"


def test_a_method_without_global_model_shows_the_other_accuracy() -> None:
    text = _shown("plain", [{**_round(1), "global_accuracy": None, "peer_bytes": 5_000_000}])
    assert "global" not in text
    assert "clients 80.0 ± 5.0 %" in text
    assert "5.00 MB between clients" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_rich_shows_everything_in_the_width_there_is(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, clock = Terminal(), Clock()
    console = ConsoleProgress("rich", total_rounds=1000, stream=stream, clock=clock)
    # 600 s from the start to round 1, which no longer counts; then 199 rounds in 1200 s, and 800 to go.
    for event in (STARTED, _round(1), WARNING, _round(200)):
        clock.now += 600
        console.record({**event, "downlink_bytes": 13_400_000_000})
    console.close()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()[-1]
    for part in ("200/1000", "global 90.0 %", "clients 80.0±5.0 %", "1:20:24 left", "26.8 GB↓", "2.00 MB↑"):
        assert part in last
    assert ("━" in last) == (columns == 120)
    assert (
        "warning: the mask keeps nothing of [conv1]" in stream.getvalue()
    )  # brackets are not interpreted as markup


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_rich_becomes_plain_without_a_cursor(
    stream: io.StringIO, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    console = ConsoleProgress("rich", total_rounds=4, stream=stream)
    console.record(_round(4))
    console.close()
    assert stream.getvalue().startswith("round 4/4  global 90.0 %")
    assert "\x1b" not in stream.getvalue()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(
        TrackingError, match=r"tracking\.console=loud: must be one of auto, rich, plain, quiet, json"
    ):
        ConsoleProgress("loud", total_rounds=4, stream=io.StringIO())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (24, "24 B"),
        (12_345, "12.3 kB"),
        (22_370_000, "22.4 MB"),
        (999_999_999, "1,000 MB"),
        (4_474_000_000_000, "4,474 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
