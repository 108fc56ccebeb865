"""The client x class table as text and as a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.federation import Federation
from ssfl.data.partition_view import show_table, total_variation
from ssfl.data.preprocess import Preprocess


def _federation(classes: int) -> Federation:
    """Client 0: rows 0-2 (labels 0, 0, 1); client 1: row 3 (the last class)."""
    y = torch.tensor([0, 0, 1, classes - 1])
    names = tuple(f"c{label}" for label in range(classes))
    x = torch.zeros(4, 2)
    arrays = Arrays("own", classes, names, x, y, x[:2].clone(), y[:2].clone())
    return Federation(
        arrays,
        Preprocess((0.0,), (1.0,)),
        (torch.arange(3), torch.tensor([3])),
        (torch.arange(2), torch.arange(0)),
    )


def test_the_table_in_words() -> None:
    lines = [line.split() for line in show_table(_federation(3)).splitlines()]
    assert ["client", "train", "test", "c0", "c1", "c2"] in lines
    assert ["0", "3", "2", "2", "1", "."] in lines
    assert ["1", "1", "0", ".", ".", "1"] in lines
    assert ["all", "4", "2", "2", "1", "1"] in lines


def test_many_classes_show_the_largest_only() -> None:
    text = show_table(_federation(100))
    assert "c0: 2, c1: 1" in text
    assert max(map(len, text.splitlines())) < 120


def test_very_many_clients_stay_short(tmp_path: Path) -> None:
    whole = _federation(3)
    many = replace(whole, train_parts=[torch.arange(1)] * 5000, test_parts=[torch.arange(1)] * 5000)
    text = show_table(many)
    assert len(text.splitlines()) < 215
    assert "the first 200 of 5000 clients" in text
    assert "clients 5000, examples per client: 1 to 1" in text
    assert ["all", "5000", "5000", "5000", "0", "0"] in [line.split() for line in text.splitlines()]


def test_total_variation_by_hand() -> None:
    assert total_variation(np.array([[5, 5], [10, 10]])) == 0
    assert total_variation(np.array([[4, 0], [0, 4]])) == 0.5
    assert total_variation(np.array([[3, 1], [0, 4]])) == pytest.approx(0.375)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_picture_is_written(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"table{suffix}"
    assert f"picture: {out}" in show_table(_federation(3), out)
    head = out.read_bytes()[:200]
    assert {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in head


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.png, \.svg, \.pdf"):
        show_table(_federation(3), tmp_path / "table.doc")
