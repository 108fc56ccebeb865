"""conf/base.yaml and docs/configuration.md agree with the declared settings."""

from __future__ import annotations

from pathlib import Path

from ssfl.config.document import base_yaml, listing, with_tables
from ssfl.config.keys import common_keys
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "configuration.md"


def test_both_files_are_made_from_the_settings() -> None:
    remedy = "run: python -m ssfl.config.document"
    assert (ROOT / "conf" / "base.yaml").read_text(encoding="utf-8") == base_yaml(), remedy
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_tables(text), remedy


def test_every_key_has_a_meaning_and_a_line() -> None:
    lines = listing().splitlines()
    for key, declared in common_keys().items():
        assert declared.about
        assert sum(line.startswith(f"{key}=") for line in lines) == 1
    assert listing("no such beginning") == ""


def test_docs_name_no_key_that_does_not_exist() -> None:
    """Checks every `section.key` on the page whose section exists, also in the hand-written text."""
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = {key.partition(".")[0] for key in common_keys()}
    import re

    named = {word for word in re.findall(r"`(\w+\.\w+)`", text) if word.partition(".")[0] in sections}
    assert named <= {*common_keys(), "algorithm.params"}, Path("docs/configuration.md")
