"""Minibatches: the right rows, in order, augmented once per epoch, in separate memory."""

from __future__ import annotations

import pytest
import torch

from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import Augmentation, Preprocess

RAW = Preprocess((0.0,), (1 / 255,))
"""With this preprocessing x equals the stored bytes."""


def _arrays(rows: int = 60, sites: bool = False) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (rows + 20, 1, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.arange(rows + 20) % 4
    site = torch.arange(rows + 20) % 3 if sites else None
    return Arrays(
        "own", 4, tuple("abcd"), x[:rows], y[:rows], x[rows:], y[rows:],
        None if site is None else site[:rows], None if site is None else site[rows:],
    )  # fmt: skip


def _federation(preprocess: Preprocess = RAW, clients: int = 3) -> Federation:
    return build_federation(_arrays(), PartitionSpec("dir", clients, 0.5, 1), preprocess)


def test_batches_follow_the_order_and_keep_the_last_partial_one() -> None:
    federation = _federation()
    order = torch.randperm(federation.examples(1), generator=torch.Generator().manual_seed(2))
    batches = list(federation.train_batches(1, order, 8, None))
    assert [len(y) for _, y in batches] == [8, 8, 4]
    rows = federation.train_parts[1][order]
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert torch.equal(y, federation.arrays.train_y[rows])
    assert torch.allclose(x, federation.arrays.train_x[rows].float(), rtol=1e-6, atol=0)


def test_an_order_may_be_short_or_repeat() -> None:
    federation = _federation()
    ((x, y),) = federation.train_batches(0, torch.tensor([2, 2, 0]), 16, None)
    assert torch.equal(y, federation.arrays.train_y[federation.train_parts[0][[2, 2, 0]]])
    assert torch.equal(x[0], x[1])
    assert list(federation.train_batches(0, torch.empty(0, dtype=torch.int64), 16, None)) == []


@pytest.mark.parametrize("batch_size", [1, 7, 20, 300])
def test_augmentation_is_one_draw_for_the_whole_order(batch_size: int) -> None:
    """Image i of the order gets draw i, for any batch size."""
    preprocess = Preprocess((0.0,), (1 / 255,), 2, True)
    federation = build_federation(_arrays(400), PartitionSpec("iid", 1), preprocess)
    order = torch.randperm(400)
    draws = preprocess.draw(400, torch.Generator().manual_seed(5))
    batches = list(federation.train_batches(0, order, batch_size, torch.Generator().manual_seed(5)))
    assert {len(y) for _, y in batches[:-1]} <= {batch_size}
    expected = preprocess.augment(federation.arrays.train_x[order], Augmentation(*draws)).float()
    assert torch.allclose(torch.cat([x for x, _ in batches]), expected, rtol=1e-6, atol=0)
    plain = torch.cat([x for x, _ in federation.train_batches(0, order, batch_size, None)])
    assert not torch.equal(plain, expected)


def test_the_consumer_may_keep_and_change_what_it_got() -> None:
    federation = _federation()
    before = (
        federation.arrays.train_x.clone(),
        federation.arrays.test_x.clone(),
        federation.arrays.test_y.clone(),
    )
    kept = []
    for batches in (federation.train_batches(0, torch.arange(20), 6, None), federation.test_batches(None, 6)):
        for x, y in batches:
            kept.append((x.clone(), x))
            x += 1
            y += 1
    assert all(torch.equal(then + 1, now) for then, now in kept)
    after = federation.arrays.train_x, federation.arrays.test_x, federation.arrays.test_y
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_test_batches_are_the_split_and_the_whole() -> None:
    federation = _federation(Preprocess((0.0,), (1 / 255,), 2, True))
    arrays = federation.arrays
    whole = torch.cat([x for x, _ in federation.test_batches(None, 6)])
    assert torch.allclose(whole, arrays.test_x.float(), rtol=1e-6, atol=0)
    rows = torch.cat([x for x, _ in federation.test_rows(5, 17, 5)])
    assert torch.equal(rows, whole[5:17])
    assert sorted(torch.cat(list(federation.test_parts)).tolist()) == list(range(20))
    for client, part in enumerate(federation.test_parts):
        own = [y for _, y in federation.test_batches(client, 4)]
        assert torch.equal(torch.cat(own), arrays.test_y[part])


def test_a_client_without_test_rows_gives_no_batches() -> None:
    federation = build_federation(_arrays(), PartitionSpec("iid", 60), RAW)
    empty = [client for client, part in enumerate(federation.test_parts) if not len(part)]
    assert empty  # 20 test rows for 60 clients
    assert list(federation.test_batches(empty[0], 4)) == []


def test_natural_federation_follows_the_sites_in_both_parts() -> None:
    arrays = _arrays(sites=True)
    federation = build_federation(arrays, PartitionSpec("natural", 3), RAW)
    assert arrays.train_site is not None
    assert arrays.test_site is not None
    for client in range(3):
        assert set(arrays.train_site[federation.train_parts[client]].tolist()) == {client}
        assert set(arrays.test_site[federation.test_parts[client]].tolist()) == {client}


def test_shape_and_sizes() -> None:
    federation = _federation()
    assert federation.input_shape == (1, 4, 4)
    assert federation.num_clients == 3
    assert [federation.examples(client) for client in range(3)] == [20, 20, 20]
