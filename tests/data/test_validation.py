"""Held-out rows: stratified, seeded, not used in training, tested like test rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.data.arrays import Arrays
from ssfl.data.errors import PartitionError
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import Preprocess
from ssfl.data.split import hold_out

RAW = Preprocess((0.0,), (1 / 255,))
quick = settings(max_examples=60, deadline=None)


def arrays(rows: int = 240) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows + 40, 1, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.arange(rows + 40) % 4
    return Arrays("own", 4, tuple("abcd"), x[:rows], y[:rows], x[rows:], y[rows:])


def federation(portion: float, clients: int = 5, seed: int = 1) -> Federation:
    return build_federation(arrays(), PartitionSpec("dir", clients, 0.5, seed), RAW, portion)


@quick
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=40), min_size=1, max_size=5),
    st.floats(0.05, 0.9),
    st.integers(0, 1000),
)
def test_every_class_of_a_client_gives_its_share(clients: list[list[int]], portion: float, seed: int) -> None:
    labels = np.array([y for own in clients for y in own], dtype=np.int64)
    parts = np.split(np.arange(len(labels)), np.cumsum([len(own) for own in clients])[:-1])
    try:
        kept, held = hold_out(labels, parts, portion, seed)
    except PartitionError:
        assert all(round(portion * len(own)) == 0 or max(np.bincount(own)) == 1 for own in clients)
        return
    for part, rest, chosen in zip(parts, kept, held, strict=True):
        assert sorted([*rest, *chosen]) == part.tolist()
        assert len(chosen) <= round(portion * len(part))
        for label in np.unique(labels[part]):
            size, share = int((labels[part] == label).sum()), int((labels[chosen] == label).sum())
            assert share <= size - 1
            assert abs(share - portion * size) < 2  # largest remainders, and one row stays


def test_the_choice_is_the_clients_own_and_the_seeds() -> None:
    labels = np.tile(np.arange(4), 30)
    parts = np.split(np.arange(120), 3)
    _, held = hold_out(labels, parts, 0.25, 7)
    _, alone = hold_out(labels, parts[:1], 0.25, 7)
    _, other = hold_out(labels, parts, 0.25, 8)
    assert [len(h) for h in held] == [10, 10, 10]
    assert held[0].tolist() == alone[0].tolist()
    assert held[0].tolist() != other[0].tolist()
    assert (held[1] - 40).tolist() != held[0].tolist()


def test_nobody_trains_on_them_and_test_splits_stay() -> None:
    whole, held = federation(0.0), federation(0.25)
    for client in range(5):
        trained, kept = set(held.train_parts[client].tolist()), set(held.held_out[client].tolist())
        assert trained | kept == set(whole.train_parts[client].tolist())
        assert not trained & kept
        assert held.test_parts[client].equal(whole.test_parts[client])
        assert held.examples(client) == len(trained)
        order = torch.arange(held.examples(client))
        seen = torch.cat([x for x, _ in held.train_batches(client, order, 7, None)]).round().to(torch.uint8)
        assert seen.equal(held.arrays.train_x[held.train_parts[client]])


def test_evaluation_rows_are_the_test_set_and_then_the_held_out_ones() -> None:
    data = federation(0.25)
    rows = torch.cat(list(data.held_out))
    assert data.evaluation_labels.equal(torch.cat([data.arrays.test_y, data.arrays.train_y[rows]]))
    x, y = (torch.cat(parts) for parts in zip(*data.test_batches(None, 9)))
    assert x.round().to(torch.uint8).equal(torch.cat([data.arrays.test_x, data.arrays.train_x[rows]]))
    assert y.equal(data.evaluation_labels)
    assert torch.cat(list(data.validation_parts)).tolist() == list(range(40, 40 + len(rows)))
    for client in range(5):
        x, y = (torch.cat(parts) for parts in zip(*data.test_batches(client, 9)))
        tests, held = data.arrays.test_x[data.test_parts[client]], data.arrays.train_x[data.held_out[client]]
        assert x.round().to(torch.uint8).equal(torch.cat([tests, held]))
        assert data.evaluation_labels[data.validation_parts[client]].equal(y[len(tests) :])
    slices = torch.cat([y for _, y in data.test_rows(35, 60, 7)])
    assert slices.equal(data.evaluation_labels[35:60])


def test_without_a_portion_only_the_test_set_is_tested() -> None:
    data = federation(0.0)
    assert data.validation_parts == ()
    assert data.evaluation_labels.equal(data.arrays.test_y)


@pytest.mark.parametrize(
    ("portion", "least", "says"),
    [
        (
            0.001,
            1,
            "dataset.validation_portion=0.001: holds out no example of any client, the largest of which owns 48",
        ),
        (0.5, 40, "dataset.min_examples=40 requires more"),
    ],
)
def test_what_cannot_be_held_out_is_refused(portion: float, least: int, says: str) -> None:
    with pytest.raises(PartitionError) as refusal:
        build_federation(arrays(), PartitionSpec("iid", 5, seed=1, min_examples=least), RAW, portion)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
