"""docs/architecture.md agrees with the source tree."""

from __future__ import annotations

import re

from tests.architecture import DOCUMENT, with_table
from tests.support.paths import ROOT


def test_the_table_is_read_from_the_source() -> None:
    """Packages and imports must be current; numbers of lines may be older."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert _without_lines(text) == _without_lines(with_table(text)), "run: python -m tests.architecture"


def _without_lines(text: str) -> str:
    return re.sub(r"(?m)^(\| [^|]+ \| \d+ \|) \d+ \|", r"\1 n |", text)


def test_every_path_that_it_names_exists() -> None:
    named = set(
        re.findall(r"`((?:ssfl|tests|examples|engine|docs)/[\w/.]+)`", DOCUMENT.read_text(encoding="utf-8"))
    )
    missing = {n for n in named if not ((ROOT / n).exists() or (ROOT / "ssfl" / n).exists())}
    assert missing == set()
