"""Properties of every partition; the balanced Dirichlet compared with a simple slot-by-slot implementation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssfl.data import partition as module
from ssfl.data.errors import PartitionError
from ssfl.data.partition import PartitionSpec, partition, summary_table

Labels = NDArray[np.int64]
quick = settings(max_examples=40, deadline=None)


@st.composite
def labels(draw: st.DrawFn, least: int = 1) -> Labels:
    """Up to 6 classes of unequal sizes, shuffled."""
    sizes = draw(st.lists(st.integers(least, 40), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


def _assert_complete(parts: list[Labels], rows: int) -> None:
    """Checks that parts are disjoint, sorted, and contain every row."""
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all((np.diff(part) > 0).all() for part in parts)


@quick
@given(
    labels(),
    st.sampled_from(["dir", "dir_unbalanced", "iid"]),
    st.integers(1, 30),
    st.sampled_from([1e-6, 0.05, 0.3, 1.0, 50.0, 1e6]),
    st.integers(0, 9),
)
def test_every_row_has_one_owner_and_calls_repeat(
    y: Labels, method: str, clients: int, alpha: float, seed: int
) -> None:
    assume(clients <= len(y))
    spec = PartitionSpec(method, clients, alpha, seed)
    parts = partition(y, spec)
    assert len(parts) == clients
    _assert_complete(parts, len(y))
    assert all(np.array_equal(a, b) for a, b in zip(parts, partition(y, spec)))
    sizes = [len(part) for part in parts]
    if method == "dir_unbalanced":
        assert min(sizes) >= 1
    else:
        assert sorted(sizes) == sorted(len(y) // clients + (k < len(y) % clients) for k in range(clients))


@quick
@given(labels(), st.integers(1, 12), st.integers(1, 8), st.integers(0, 9))
def test_unbalanced_keeps_the_minimum(y: Labels, clients: int, least: int, seed: int) -> None:
    assume(clients * least <= len(y))
    parts = partition(y, PartitionSpec("dir_unbalanced", clients, 0.05, seed, least))
    _assert_complete(parts, len(y))
    assert min(map(len, parts)) >= least


@quick
@given(labels(least=12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 9))
def test_pathological_uses_all_data_with_exactly_c_classes(
    y: Labels, clients: int, per_client: int, seed: int
) -> None:
    classes = int(y.max()) + 1
    assume(per_client <= classes <= clients * per_client)
    parts = partition(y, PartitionSpec("patho", clients, per_client, seed))
    _assert_complete(parts, len(y))
    assert [len(set(y[part])) for part in parts] == [per_client] * clients


def test_pathological_is_even_on_even_classes() -> None:
    """CIFAR-10's shape: 100 clients, 2 classes each, so 20 clients a class, 250 rows each."""
    y = np.repeat(np.arange(10), 5000)
    parts = partition(y, PartitionSpec("patho", 100, 2, 550))
    table = summary_table(y, parts, 10)
    assert set(table.flatten().tolist()) == {0, 250}
    assert (table > 0).sum(axis=0).tolist() == [20] * 10
    pairs = {tuple(np.flatnonzero(row)) for row in table}
    assert len(pairs) > 30  # of 45 possible pairs, at random


def test_pathological_balances_unequal_classes() -> None:
    """90 + 10 rows over 5 clients with one class each: 20 rows each is impossible; 4 + 1 clients is closest."""
    y = np.repeat([0, 1], [90, 10])
    assert sorted(map(len, partition(y, PartitionSpec("patho", 5, 1)))) == [10, 22, 22, 23, 23]
    y = np.repeat(np.arange(4), [400, 200, 100, 100])
    sizes = [len(part) for part in partition(y, PartitionSpec("patho", 8, 2, 3))]
    assert max(sizes) - min(sizes) <= 3


def test_pathological_alpha_below_one_means_two_classes() -> None:
    y = np.repeat(np.arange(5), 20)
    assert all(len(set(y[part])) == 2 for part in partition(y, PartitionSpec("patho", 10, 0.3)))


def _walk_slot_by_slot(
    slots: Labels, log_prior: NDArray[np.float64], counts: Labels, uniform: NDArray[np.float64]
) -> list[int]:
    """The definition of the protocol: one slot after the other, renormalised over classes with rows left."""
    left, drawn = counts.tolist(), []
    for client, u in zip(slots, uniform):
        weights = [np.exp(log_prior[client, c]) if n else 0.0 for c, n in enumerate(left)]
        total, below, pick = sum(weights), 0.0, -1
        for c, weight in enumerate(weights):
            below += weight / total
            if left[c]:
                pick = c
                if u < below:
                    break
        drawn.append(pick)
        left[pick] -= 1
    return drawn


@quick
@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(1, 6), st.integers(0, 99))
def test_the_blockwise_walk_is_the_slot_by_slot_walk(counts: list[int], clients: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sum(counts)
    slots = rng.integers(0, clients, rows)
    log_prior = np.log(rng.dirichlet(np.full(len(counts), 0.5), clients) + 1e-9)
    uniform = rng.random(rows)
    plain = _walk_slot_by_slot(slots, log_prior, np.array(counts), uniform)
    before, module._SLOTS_AT_ONCE = module._SLOTS_AT_ONCE, 7
    try:
        assert module._draw_classes(slots, log_prior, np.array(counts), uniform).tolist() == plain
    finally:
        module._SLOTS_AT_ONCE = before


def test_balanced_dirichlet_follows_the_prior_while_pools_last() -> None:
    """Few clients on large pools: each client's class histogram is a multinomial sample of its q_k."""
    prior = np.random.default_rng(0).dirichlet(np.full(10, 0.3), 5)
    uniform = np.random.default_rng(1).random(5 * 2000)
    slots = np.repeat(np.arange(5), 2000)
    drawn = module._draw_classes(slots, np.log(prior), np.full(10, 10**6), uniform)
    for client in range(5):
        share = np.bincount(drawn[slots == client], minlength=10) / 2000
        error = 5 * np.sqrt(prior[client] * (1 - prior[client]) / 2000) + 1e-3
        assert (np.abs(share - prior[client]) < error).all()


def test_dirichlet_logarithms_have_the_dirichlet_moments() -> None:
    """E q = 1/C, Var q = (1/C)(1 - 1/C)/(alpha C + 1), and alpha -> 0 puts all weight on one class."""
    rng = np.random.default_rng(0)
    q = module._softmax(module._log_dirichlet(rng, 0.3, (40_000, 10)))
    assert q.mean(axis=0) == pytest.approx(np.full(10, 0.1), abs=0.005)
    assert q.var(axis=0) == pytest.approx(np.full(10, 0.09 / 4), rel=0.05)
    assert module._softmax(module._log_dirichlet(rng, 1e-6, (1000, 10))).max(axis=1).min() > 0.999


def test_larger_alpha_is_nearer_to_uniform() -> None:
    y = np.repeat(np.arange(10), 1000)
    distances = []
    for alpha in (0.01, 0.3, 3.0, 100.0):
        table = summary_table(y, partition(y, PartitionSpec("dir", 50, alpha, 1)), 10)
        distances.append(np.abs(table / 200 - 0.1).sum(axis=1).mean())
    assert all(a > b + 0.05 for a, b in pairwise(distances))


def test_dirichlet_sizes_and_class_totals_at_cifar_scale() -> None:
    y = np.repeat(np.arange(100), 500)
    parts = partition(y, PartitionSpec("dir", 100, 0.3, 550))
    assert {len(part) for part in parts} == {500}
    assert summary_table(y, parts, 100).sum(axis=0).tolist() == [500] * 100


def test_unbalanced_sizes_differ() -> None:
    y = np.repeat(np.arange(10), 500)
    sizes = [len(part) for part in partition(y, PartitionSpec("dir_unbalanced", 20, 0.3, 1))]
    assert max(sizes) > 2 * min(sizes)


def test_seeds_differ() -> None:
    y = np.repeat(np.arange(4), 25)
    for method in ("dir", "patho", "dir_unbalanced", "iid"):
        one, two = (partition(y, PartitionSpec(method, 5, 2, seed)) for seed in (1, 2))
        assert any(not np.array_equal(a, b) for a, b in zip(one, two)), method


def test_natural_is_the_sites_in_order() -> None:
    site = np.array([7, 3, 7, 3, 9])
    parts = partition(np.array([0, 1, 0, 1, 0]), PartitionSpec("natural", 3), site)
    assert [part.tolist() for part in parts] == [[1, 3], [0, 2], [4]]


def test_summary_table_by_hand() -> None:
    y = np.array([0, 2, 2, 1, 0])
    assert summary_table(y, [np.array([0, 1, 2]), np.array([3, 4])], 4).tolist() == [
        [1, 0, 2, 0],
        [1, 1, 0, 0],
    ]


FOUR = np.repeat(np.arange(4), 5)


@pytest.mark.parametrize(
    ("spec", "key", "allowed"),
    [
        (("dir", 21, 0.3), "training.client_num_in_total", "at most 20"),
        (("patho", 4, 5), "dataset.partition_alpha", "from 1 to 4"),
        (("patho", 3, 1), "dataset.partition_alpha", "from 2 to 4"),
        (("iid", 5, 0.3, 0, 5), "dataset.min_examples", "at most 4"),
        (("natural", 3, 0.3), "dataset.partition_method", "train_site"),
        (("dir", 5, 0.0), "dataset.partition_alpha", "above 0"),
        (("dir", 5, float("nan")), "dataset.partition_alpha", "finite"),
        (("dir", 0, 0.3), "training.client_num_in_total", "at least 1"),
        (("dir", 5, 0.3, 0, 0), "dataset.min_examples", "at least 1"),
        (("lda", 5, 0.3), "dataset.partition_method", "patho"),
    ],
)
def test_impossible_settings_name_key_value_and_what_is_allowed(
    spec: tuple[str, int, float], key: str, allowed: str
) -> None:
    with pytest.raises(PartitionError) as caught:
        partition(FOUR, PartitionSpec(*spec))
    assert caught.value.key == key
    assert allowed in caught.value.allowed
    assert str(caught.value).startswith(f"{key}={caught.value.value}: ")
    assert "\n" not in str(caught.value)


def test_natural_wants_as_many_clients_as_sites() -> None:
    with pytest.raises(PartitionError, match="client_num_in_total=3: must be 2"):
        partition(FOUR, PartitionSpec("natural", 3), np.arange(20) % 2)
    with pytest.raises(PartitionError, match="min_examples=5: at most 1"):
        partition(FOUR, PartitionSpec("natural", 2, min_examples=5), np.arange(20) // 19)


def test_pathological_needs_enough_rows_of_each_class() -> None:
    """Class 1 has 2 rows, so at most 2 of 8 clients have it; 2 classes per client are impossible."""
    with pytest.raises(PartitionError, match="client_num_in_total=8"):
        partition(np.repeat([0, 1], [50, 2]), PartitionSpec("patho", 8, 2))
