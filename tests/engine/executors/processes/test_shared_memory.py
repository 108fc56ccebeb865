"""Arenas: both sides see the same tensors, also after growth; known tensors are sent as offsets; no leaks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssfl.engine.executors.processes.shared_memory import Arena, Receiver, SentTensors, dumps

KINDS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)


def two_sides() -> tuple[Arena, Arena]:
    """An arena and its mapping in "another process": the same file with a second descriptor."""
    arena = Arena()
    return arena, Arena(os.dup(arena.fd))


def filled(kind: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2 if kind == torch.bool else 100, shape, generator=generator).to(kind)


# ── put and get ──────────────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 40), max_size=3).map(tuple)), max_size=12
    )
)
def test_the_other_side_reads_what_was_put(specs: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
    ours, theirs = two_sides()
    tensors = [filled(kind, shape, seed) for seed, (kind, shape) in enumerate(specs)]
    offsets = [ours.put(t) for t in tensors]
    assert all(offset % 64 == 0 for offset in offsets)
    ends = [offset + t.nbytes for offset, t in zip(offsets, tensors, strict=True)]
    assert all(end <= later for end, later in zip(ends, offsets[1:], strict=False))  # no overlap
    for offset, tensor in zip(offsets, tensors, strict=True):
        found = theirs.get(offset, tuple(tensor.shape), tensor.dtype)
        assert found.dtype == tensor.dtype
        assert found.equal(tensor)
    ours.close()
    theirs.close()


def test_a_tensor_that_is_no_block_is_put_in_order() -> None:
    ours, theirs = two_sides()
    tensor = torch.arange(12.0).view(3, 4).t()
    assert theirs.get(ours.put(tensor), (4, 3), torch.float32).tolist() == tensor.tolist()


def test_get_is_a_view_and_stays_one_through_growth() -> None:
    ours, theirs = two_sides()
    first = theirs.get(ours.put(torch.zeros(4)), (4,), torch.float32)
    old = ours.get(0, (4,), torch.float32)
    for size in (1 << 10, 1 << 14, 1 << 18):
        ours.put(torch.ones(size))
    ours.get(0, (4,), torch.float32).fill_(7.0)
    assert first.tolist() == old.tolist() == [7.0] * 4
    assert theirs.get(ours.put(torch.full((3,), 5.0)), (3,), torch.float32).tolist() == [5.0] * 3


def test_after_a_reset_the_memory_is_used_again_and_does_not_grow() -> None:
    arena, sizes = Arena(), set()
    for turn in range(20):
        arena.reset()
        offsets = [arena.put(torch.full((1000,), float(turn + i))) for i in range(5)]
        assert offsets[0] == 0
        sizes.add(os.fstat(arena.fd).st_size)
    assert len(sizes) == 1
    assert arena.get(offsets[4], (1000,), torch.float32)[0] == 23.0


def test_growth_is_by_doubling() -> None:
    """Many small tensors need few new mappings."""
    arena, sizes = Arena(), []
    for _ in range(2000):
        arena.put(torch.zeros(1000))
        sizes.append(os.fstat(arena.fd).st_size)
    assert len(set(sizes)) <= 14  # 2000 x 4 KB, starting with one page: log2(8 MB / 4 KB) = 11, plus rounding
    assert sizes[-1] < 3 * arena.used


def test_where_a_view_lies_is_known() -> None:
    arena = Arena()
    arena.put(torch.zeros(10))
    offset = arena.put(torch.arange(6.0))
    view = arena.get(offset, (2, 3), torch.float32)
    assert arena.holds(view) == offset
    assert arena.holds(view[1]) == offset + 12
    assert arena.holds(view.t()) is None  # not contiguous: it must be copied
    assert arena.holds(view.clone()) is None


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────
def reader(arena: Arena) -> Any:
    def resolve(handle: Any) -> Tensor:
        _, offset, shape, dtype = handle
        return arena.get(offset, shape, dtype)

    return resolve


def test_a_message_is_small_and_a_tensor_is_written_once() -> None:
    ours, theirs = two_sides()
    sent, weights = SentTensors(), torch.randn(100_000)
    raw = [dumps({"client": k, "weights": weights, "own": torch.full((3,), k)}, ours, sent) for k in range(5)]
    assert max(map(len, raw)) < 1000
    assert ours.used < 1.01 * weights.nbytes
    for k, message in enumerate(raw):
        found = Receiver(message, reader(theirs)).load()
        assert found["client"] == k
        assert found["weights"].equal(weights)
        assert found["own"].tolist() == [k] * 3
    assert sent.original(0, (100_000,), torch.float32) is weights
    assert sent.original(0, (50_000,), torch.float32) is None
    assert sent.original(64, (3,), torch.int64) is None


def test_views_of_one_memory_are_told_apart() -> None:
    ours, theirs = two_sides()
    base = torch.arange(12.0)
    raw = dumps([base, base[:4], base.view(3, 4).t(), base[:0], base[4:4]], ours, SentTensors())
    found = Receiver(raw, reader(theirs)).load()
    wanted = [base, base[:4], base.view(3, 4).t(), base[:0], base[4:4]]
    assert [t.tolist() for t in found] == [t.tolist() for t in wanted]


def test_what_came_from_the_other_side_goes_back_by_its_place() -> None:
    """A worker's reply that contains a received tensor (a mask that clients keep) copies no data."""
    down, theirs = two_sides()
    up = Arena()
    mask = torch.rand(50_000) < 0.5
    sent = SentTensors()
    got = Receiver(dumps(mask, down, sent), reader(theirs)).load()
    raw = dumps(("done", got), up, known=theirs.holds)
    assert up.used == 0
    handles: list[Any] = []

    def resolve(handle: Any) -> Tensor:
        kind, offset, shape, dtype = handle
        handles.append(kind)
        original = sent.original(offset, shape, dtype)
        assert original is not None
        return original

    assert Receiver(raw, resolve).load()[1] is mask
    assert handles == ["returned"]


def test_a_network_crosses_with_its_weights() -> None:
    ours, theirs = two_sides()
    module = nn.Linear(3, 2)
    found = Receiver(dumps(module.state_dict(), ours), reader(theirs)).load()
    assert found["weight"].equal(module.weight)


# ── nothing left behind ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_closing_gives_the_file_back_and_live_views_keep_their_memory() -> None:
    before = set(os.listdir("/proc/self/fd"))
    arena = Arena()
    view = arena.get(arena.put(torch.arange(5.0)), (5,), torch.float32)
    arena.close()
    arena.close()  # a second call has no effect
    assert view.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    del view
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="reads the mappings in /proc")
def test_no_name_in_any_directory_and_no_mapping_after_the_last_view() -> None:
    arena = Arena()
    view = arena.get(arena.put(torch.arange(5.0)), (5,), torch.float32)
    target = os.readlink(f"/proc/self/fd/{arena.fd}")
    assert target.endswith("(deleted)")  # the kernel marks a file without a name so
    arena.close()
    inode_mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:ssfl" in line]
    assert inode_mapped
    del view
    assert len(_mappings()) < len(inode_mapped)


def _mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:ssfl" in line]
