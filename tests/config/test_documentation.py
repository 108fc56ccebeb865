"""conf/base.yaml and docs/configuration.md agree with the declared settings."""

from __future__ import annotations

from pathlib import Path

from ssfl.config.document import base_yaml, listing, tables, with_tables
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


def test_a_table_shows_values_as_they_are_typed() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables().splitlines()]
    rows = {row[0].split("`")[1]: row[1:] for row in cells if row[0].startswith("`")}
    assert rows["dataset.partition_method"][:2] == [
        "`dir`",
        "`dir`, `patho`, `dir_unbalanced`, `iid`, `natural`",
    ]
    assert rows["engine.workers"][:2] == ["`auto`", "`auto`, whole number at least 1 and at most 1024"]
    assert rows["experiment.debug_mode"][1] == "`true`, `false`"
    assert rows["optimizer.lr"][1:] == ["number above 0", "initial learning rate"]
    assert rows["model.cs"][1] == ""


def test_a_terminal_shows_no_markup() -> None:
    assert "`" in tables()
    assert "`" not in listing()
    assert "`" not in base_yaml().partition("defaults:")[2]


def test_docs_name_no_key_that_does_not_exist() -> None:
    """Checks every `section.key` on the page whose section exists, also in the hand-written text."""
    text = DOCUMENT.read_text(encoding="utf-8")
    sections = {key.partition(".")[0] for key in common_keys()}
    import re

    named = {word for word in re.findall(r"`(\w+\.\w+)`", text) if word.partition(".")[0] in sections}
    assert named <= {*common_keys(), "algorithm.params", "model.safetensors"}, Path("docs/configuration.md")
