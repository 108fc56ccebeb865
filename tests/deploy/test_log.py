"""Texts of other machines in logs: one printable line of limited length each."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ssfl.deploy.log import MOST_CHARACTERS, EventLog, one_line
from ssfl.deploy.transport.port import Failure, Message
from tests.deploy.fake_fleet import make_bench

FORGED = "no\nserver: run finished: all is well\x1b[2J\u2028\u202e\r" + "x" * 1_000_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is, \u00e9\u4e16", "as it is, \u00e9\u4e16"),
        (" two\nlines\t ", "two lines"),
        ("a\x1b[31m\x00b\x85\u2029c\u202e", "a [31m b c"),
        ("\ud800", ""),
        ("", ""),
    ],
)
def test_a_text_becomes_one_printable_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_long_text_is_cut() -> None:
    assert one_line("x" * MOST_CHARACTERS) == "x" * MOST_CHARACTERS
    assert one_line("x" * 10_000) == "x" * (MOST_CHARACTERS - 3) + "..."


def test_an_event_is_one_line_for_people_and_one_for_programs(tmp_path: Path) -> None:
    stream = io.StringIO()
    EventLog("server", tmp_path / "log.jsonl", stream).warning("site_refuses", FORGED[:200], run="r\nr")
    assert len(stream.getvalue().splitlines()) == 1
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == FORGED[:200]


@pytest.mark.parametrize("kind", ["failed", "refused", "expired", "text"])
def test_what_a_site_says_cannot_fill_or_forge_the_log(kind: str) -> None:
    bench = make_bench("fedavg", sizes=(9, 9, 9))

    def fault(message: Message, answer: Message | str) -> Failure | str:
        return FORGED if kind == "text" else Failure("", kind, FORGED)  # type: ignore[arg-type]

    bench.site(1).fault = fault
    bench.join_all()
    texts = [line["text"] for line in bench.log_lines] + bench.registry.refusals
    assert texts
    assert all(text.isprintable() and len(text) < MOST_CHARACTERS + 100 for text in texts)
    if kind != "expired":
        assert any("server: run finished" in text for text in texts), "what it says is shown"


def test_an_event_without_a_text_is_its_name_alone() -> None:
    stream = io.StringIO()
    EventLog("site", None, stream).info("connected")
    assert stream.getvalue() == "site: connected\n"
