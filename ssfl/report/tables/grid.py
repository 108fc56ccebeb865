"""Rows of cells as a table for a terminal or for Markdown."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Style = Literal["text", "markdown", "csv"]


EMPTY = ("", "–")


def without_empty(
    head: Sequence[str], cells: Sequence[Sequence[str]], optional: Sequence[int]
) -> tuple[list[str], list[list[str]]]:
    """Head and cells without those `optional` columns that have no entry."""
    gone = {i for i in optional if all(line[i] in EMPTY for line in cells)}
    kept = [i for i in range(len(head)) if i not in gone]
    return [head[i] for i in kept], [[line[i] for i in kept] for line in cells]


def draw(
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    style: Style,
    width: int | None,
    text_columns: Sequence[int],
) -> str:
    """Cells below `head`; `text_columns` are aligned left, others right. width: None: that of the terminal."""
    if style == "markdown":
        rules = [":--" if i in text_columns else "--:" for i in range(len(head))]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in cells]
        return "".join("| " + " | ".join(line) + " |\n" for line in [head, rules, *escaped])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i in text_columns else "right", vertical="bottom")
    for line in cells:
        table.add_row(*map(Text, line))
    out = io.StringIO()
    columns = width or shutil.get_terminal_size(fallback=(200, 50)).columns
    Console(file=out, width=columns, color_system=None).print(table)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines() if line.strip())
