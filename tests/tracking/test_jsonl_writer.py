"""metrics.jsonl after kills, resumes and special numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.report.runs import load_run
from ssfl.tracking import JsonlWriter


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def round_event(number: int) -> dict[str, Any]:
    return {"event": "round", "phase": "train", "round": number, "downlink_bytes": 8, "uplink_bytes": 8}


def test_rows_come_back_in_order_and_are_there_at_once(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "m.jsonl")
    for number in range(3):
        writer.record({"event": "round", "round": number, "name": "Zürich"})
        assert len(_rows(tmp_path / "m.jsonl")) == number + 1  # flushed before close
    writer.close()
    assert [row["round"] for row in _rows(tmp_path / "m.jsonl")] == [0, 1, 2]


def test_position_is_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    assert writer.position == 0
    writer.record({"event": "warning", "message": "ä"})
    assert writer.position == path.stat().st_size
    writer.close()
    again = JsonlWriter(path)
    assert again.position == path.stat().st_size
    again.close()


def test_resume_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    writer.record(round_event(1))
    checkpoint = writer.position
    writer.record(round_event(2))
    writer.close()
    resumed = JsonlWriter(path, keep_bytes=checkpoint)
    resumed.record(round_event(2))
    resumed.close()
    assert [row["round"] for row in _rows(path)] == [1, 2]


def test_resume_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"event": "run_started"}\n')
    JsonlWriter(path, keep_bytes=0).close()
    assert path.read_bytes() == b""


def test_lost_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"event": "run_started"}\n')
    JsonlWriter(path, keep_bytes=40).close()
    rows = _rows(path)
    assert rows[0] == {"event": "run_started"}
    assert rows[1]["event"] == "warning"
    assert "15 bytes" in str(rows[1]["message"])  # 40 recorded, 25 present


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    writer.record(
        {
            "event": "round",
            "train_loss_last_epoch": math.nan,
            "client_accuracy": [0.5, math.inf],
            "d": {"a": math.nan},
        }
    )
    writer.close()
    assert _rows(path) == [
        {"event": "round", "train_loss_last_epoch": None, "client_accuracy": [0.5, None], "d": {"a": None}}
    ]


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_bytes=-1"):
        JsonlWriter(tmp_path / "m.jsonl", keep_bytes=-1)


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(st.text(), min_size=1, max_size=5),
    share=st.floats(0, 1),
)
def test_a_kill_at_any_byte_leaves_a_prefix_of_whole_rows(messages: list[str], share: float) -> None:
    events = [{"event": "warning", "message": message} for message in messages]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        writer = JsonlWriter(path)
        for event in events:
            writer.record(event)
        writer.close()
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        whole = path.read_bytes().count(b"\n")
        again = JsonlWriter(path)
        again.record({"event": "resumed", "round": 0})
        again.close()
        assert _rows(path) == [*events[:whole], {"event": "resumed", "round": 0}]


SPOILED = [
    b"\0\0\0\0",
    b'{"event": "round", "rou',
    b"[1]",
    b'{"no": "event"}',
    b'{"event": "round", "round": "2", "phase": "train", "downlink_bytes": 1, "uplink_bytes": 1}',
    b'{"event": "round", "round": 2, "phase": "train"}',
    b"\xff\xfe",
    b"x",
    b"[" * 5000,
]


@pytest.mark.parametrize("bad", SPOILED, ids=range(len(SPOILED)))
def test_a_spoiled_line_is_blanked_and_told(bad: bytes, tmp_path: Path) -> None:
    """Positions in the file do not change, and the other lines can be read, also by the report."""
    path = tmp_path / "metrics.jsonl"
    first, last = b'{"event": "run_started"}\n', json.dumps(round_event(1)).encode() + b"\n"
    path.write_bytes(first + bad + b"\n" + last)
    position = path.stat().st_size
    writer = JsonlWriter(path, keep_bytes=position)
    writer.record(round_event(2))
    writer.close()
    content = path.read_bytes()
    assert content[:position] == first + b" " * len(bad) + b"\n" + last
    rows = load_run(tmp_path).rows
    assert [row["event"] for row in rows] == ["run_started", "round", "warning", "round"]
    JsonlWriter(path).close()  # opening it again adds no warning
    assert path.read_bytes() == content
