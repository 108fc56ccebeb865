"""Row numbers of many clients in one tensor and one array: a list of tensors is the oracle."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssfl.data.client_rows import ClientRows


@given(st.lists(st.lists(st.integers(0, 1000), max_size=5), max_size=8))
def test_like_a_list(rows: list[list[int]]) -> None:
    each = [torch.tensor(r, dtype=torch.int64) for r in rows]
    parts = ClientRows(each)
    for found in (parts, pickle.loads(pickle.dumps(parts))):
        assert len(found) == len(rows)
        assert [p.tolist() for p in found] == rows
        assert [p.tolist() for p in found[1:4]] == rows[1:4]
        assert all(p.dtype == torch.int64 for p in found)
        for k in range(-len(rows), len(rows)):
            assert found[k].tolist() == rows[k]
        for outside in (len(rows), -len(rows) - 1):
            with pytest.raises(IndexError):
                found[outside]


def test_ten_thousand_clients_are_two_vectors() -> None:
    parts = ClientRows(torch.split(torch.arange(30_000), 3))
    assert parts.rows.nbytes + len(parts.ends) * parts.ends.itemsize == 8 * (30_000 + 10_001)
    assert parts[9_999].tolist() == [29_997, 29_998, 29_999]
    assert parts[5].data_ptr() == parts.rows[15:].data_ptr()  # a view
