"""docs/configuration.md names every key, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ssfl.config import Config
from ssfl.config.schema import LEFTOVERS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def _keys(value: Any, prefix: str = "") -> set[str]:
    if not dataclasses.is_dataclass(value):
        return {prefix}
    names = [field.name for field in dataclasses.fields(value)]
    return {key for name in names for key in _keys(getattr(value, name), f"{prefix}.{name}".strip("."))}


def _documented() -> set[str]:
    """Keys in the first column of the first table; `.name` goes on with the section of the key before it."""
    table = DOCUMENT.read_text(encoding="utf-8").split("## Keys")[1].split("**Leftovers**")[0]
    named: set[str] = set()
    for row in re.findall(r"^\| (`[a-z].*?) \|", table, re.MULTILINE):
        section = ""
        for key in re.findall(r"`([\w.]+)`", row):
            section = section if key.startswith(".") else key.rpartition(".")[0]
            named.add(section + key if key.startswith(".") else key)
    return named


def test_every_key_has_its_row() -> None:
    assert _documented() | set(LEFTOVERS) == _keys(Config())


def test_leftovers_are_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").split("**Leftovers**")[1]
    assert [key for key in LEFTOVERS if f"`{key}`" not in text] == []
