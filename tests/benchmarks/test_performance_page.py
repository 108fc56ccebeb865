"""docs/performance.md and the README's speed table: every table names its instruction set, as its file does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.isa import CAPS
from tests.support.paths import ROOT

SETS = ("AVX-512", "AVX2", "SSE2", "NEON")
TORCH = {"avx2": "AVX2", "sse2": "DEFAULT"}
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.machine.json"))


def sections(text: str) -> dict[str, str]:
    """Heading -> text below it, up to the next heading; headings inside a section are their own."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def has_table(text: str) -> bool:
    return "\n|--" in text or "\n| :--" in text


def test_every_table_names_its_instruction_set() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    found = {heading: part for heading, part in sections(text).items() if has_table(part)}
    assert len(found) >= 6
    for heading, part in found.items():
        first_column = re.findall(r"^\| ([^|]*) \|", part, flags=re.MULTILINE)
        assert any(name in heading for name in SETS) or any(
            name in cell for name in SETS for cell in first_column
        ), heading
        if heading.endswith(SETS):  # one set only: no table of another
            others = [name for name in SETS if not heading.endswith(name)]
            assert not [cell for cell in first_column for name in others if name in cell]


def test_the_speed_table_has_rows_of_both_sets() -> None:
    rows = sections((ROOT / "README.md").read_text(encoding="utf-8"))["Speed"]
    assert rows.index("*AVX-512*") < rows.index("*AVX2*")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_result_file_named_after_a_set_was_measured_with_it(path: Path) -> None:
    machine = json.loads(path.read_text(encoding="utf-8"))
    sets = machine.get("instruction_sets")
    words = path.name.removesuffix(".machine.json").split("_")
    named = [name for name in CAPS if name in words]
    if sets is None:  # an older file, of a machine with AVX-512 (docs/performance.md)
        assert "avx512f" in machine["arithmetic"]
        assert not named
    else:
        assert sets["caps"] == (CAPS[named[0]] if named else {})
        assert sets["torch"] == (TORCH[named[0]] if named else "AVX512")
        assert sets["ssfl"] is not None or "kernels" in words
