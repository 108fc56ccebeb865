"""Decisions of methods on small hand-made vectors: cohorts, masks, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssfl.algorithms.base import (
    Algorithm,
    ClientContext,
    ClientReply,
    ClientReport,
    Clock,
    Probe,
    ServerContext,
    sample_clients,
)
from ssfl.algorithms.dense import broadcast
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.masked import MaskedState, SupportMemo, masked_training, store_mask
from ssfl.algorithms.random_masks import ClientwiseRandomMask, Scope, SharedRandomMask
from ssfl.algorithms.ssfl import SSFL, Discovery, score_saliency
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, MaskBits, Payload, Support
from ssfl.core.saliency import SNIP
from tests.support.rigs import payload_in

FIT = FitSpec(1, 8, ExponentialDecay(0.1, 1.0))
PROBE = Probe(SNIP, 1, 8)
LAYOUT = Layout.of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False)))
CLOCK = Clock(1, 5)


def context(counts: Sequence[int] = (10, 30), seed: int = 7) -> ServerContext:
    return ServerContext(LAYOUT, dict(enumerate(counts)), seed)


def client_context(client: int = 0) -> ClientContext:
    return ClientContext(client, CLOCK, 7, LAYOUT, 10)


def scored(client: int, scores: list[float], examples: int) -> ClientReply:
    return ClientReply(
        client,
        Payload({"scores": DenseValues(torch.tensor(scores, dtype=torch.float64))}, client),
        ClientReport(examples),
    )


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 9))
def test_a_cohort_is_distinct_sorted_and_of_its_size(clients: int, per_round: int, round: int) -> None:
    cohort = sample_clients(context([1] * clients), per_round, Clock(round, 9))
    assert cohort == sorted(set(cohort))
    assert len(cohort) == min(per_round, clients)
    assert set(cohort) <= set(range(clients))


def test_cohorts_change_with_round_and_seed_and_reach_everybody() -> None:
    per_round = [tuple(sample_clients(context([1] * 20), 5, Clock(r, 100))) for r in range(1, 101)]
    assert len(set(per_round)) > 90
    seen = torch.bincount(torch.tensor([c for cohort in per_round for c in cohort]), minlength=20)
    # 100 draws at 1/4: mean 25, standard deviation 4.3.
    assert bool((seen > 8).all())
    assert bool((seen < 42).all())
    assert tuple(sample_clients(context([1] * 20, seed=8), 5, Clock(1, 100))) != per_round[0]


def test_weighting_decides_the_mask() -> None:
    """Scores by hand: uniform mean [3, 2, 2, 1.5, 0, 0], p_k-weighted (1/4, 3/4) [1.5, 3, 1, 2.25, 0, 0]."""
    replies = [scored(0, [6, 0, 4, 0, 0, 0], 10), scored(1, [0, 4, 0, 3, 0, 0], 30)]
    plan = broadcast("score", [0, 1], Payload({}), CLOCK, timed=False)
    uniform = Discovery(PROBE, 0.34, "uniform").mask(torch.ones(LAYOUT.size), replies, plan, context())
    weighted = Discovery(PROBE, 0.34).mask(torch.ones(LAYOUT.size), replies, plan, context())
    assert uniform.int().tolist() == [1, 1, 0, 0, 0, 0]  # the tie of 2 and 2 goes to the lower index
    assert weighted.int().tolist() == [0, 1, 0, 1, 0, 0]
    kept = Discovery(PROBE, 0.34, "uniform", ties="keep").mask(
        torch.ones(LAYOUT.size), replies, plan, context()
    )
    assert kept.int().tolist() == [1, 1, 1, 0, 0, 0]
    floored = Discovery(PROBE, 0.34, "uniform", floor_density=0.1).mask(
        torch.ones(LAYOUT.size), replies, plan, context()
    )
    assert floored.int().tolist() == [1, 0, 0, 0, 1, 0]


def test_scores_are_averaged_over_those_who_answered() -> None:
    """Clients 0 (10 examples) and 1 (30) of four reply: their weights are 1/4 and 3/4, from their 40 examples."""
    replies = [scored(0, [6, 0, 4, 0, 0, 0], 10), scored(1, [0, 4, 0, 3, 0, 0], 30)]
    plan = broadcast("score", [0, 1, 2, 3], Payload({}), CLOCK, timed=False)
    everybody = context((10, 30, 60, 1000))
    for weighting, wanted in (("uniform", [1, 1, 0, 0, 0, 0]), ("examples", [0, 1, 0, 1, 0, 0])):
        found = Discovery(PROBE, 0.34, weighting).mask(torch.ones(LAYOUT.size), replies, plan, everybody)  # type: ignore[arg-type]
        assert found.int().tolist() == wanted
    alone = Discovery(PROBE, 0.34).mask(torch.ones(LAYOUT.size), replies[1:], plan, everybody)
    assert alone.int().tolist() == [0, 1, 0, 1, 0, 0]  # client 1's own [0, 4, 0, 3, 0, 0]


def test_masked_values_are_averaged_over_those_who_answered() -> None:
    """(1 * 10 + 5 * 30) / 40 = 4: client 2 did not reply and does not count; zero outside the mask."""
    bits = torch.tensor([True, False, False, False, True, False])
    method = SSFL(FIT, 3, Discovery(PROBE, 0.34))
    state = MaskedState(torch.zeros(LAYOUT.size), bits, broadcast=True, holders=(0,))
    plan = method.configure_round(state, CLOCK, context((10, 30, 60)))
    assert plan is not None
    support = Support.of(LAYOUT.expand_mask(bits))

    def trained(client: int, value: float, examples: int) -> ClientReply:
        part = support.pack(torch.full((LAYOUT.size,), value))
        return ClientReply(client, Payload({"w": part}, client), ClientReport(examples))

    after = method.aggregate(
        state, plan, iter([trained(0, 1.0, 10), trained(1, 5.0, 30)]), context((10, 30, 60))
    )
    assert after.theta.tolist() == [4.0, 0, 0, 0, 4.0, 4.0, 4.0, 0]
    assert after.holders == (0, 1)


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 20), (0.5, 10), (0.12, 2), (0.01, 1)])
def test_a_fraction_of_the_clients_scores(fraction: float, count: int) -> None:
    scorers = Discovery(PROBE, 0.5, client_fraction=fraction).scorers(CLOCK, context([1] * 20))
    assert len(set(scorers)) == count
    assert scorers == sorted(scorers)


def test_all_clients_receive_the_mask_though_a_fraction_scored() -> None:
    method = SSFL(FIT, 1, Discovery(PROBE, 0.5, client_fraction=0.5))
    state = method.initialize(torch.ones(LAYOUT.size), context([1] * 6))
    plan = method.configure_round(state, CLOCK, context([1] * 6))
    assert plan is not None
    assert (plan.phase, len(plan.instructions), plan.timed) == ("score", 3, False)
    replies = [scored(i.client, [5, 4, 3, 2, 1, 0], 1) for i in plan.instructions]
    state = method.aggregate(state, plan, replies, context([1] * 6))
    assert state.theta.tolist() == [1, 1, 1, 0, 1, 1, 0, 0]  # two biases between the layers stay
    plan = method.configure_round(state, CLOCK, context([1] * 6))
    assert plan is not None
    assert (plan.phase, [i.client for i in plan.instructions]) == ("store_mask", list(range(6)))
    sent = payload_in(plan.instructions[0].inbox[0]).parts["mask"]
    assert isinstance(sent, MaskBits)
    assert sent.bits.int().tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("mask_round", "dense"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 4)])
def test_warm_up_counts_as_the_authors_do(mask_round: int, dense: int) -> None:
    """The authors' loop counts rounds from 1: all-ones masks while round < W, the mask at the start of round W."""
    method = SSFL(FIT, 1, Discovery(PROBE, 0.5), mask_round)
    state = method.initialize(torch.ones(LAYOUT.size), context())
    phases = [method.configure_round(state, Clock(r, 5), context()) for r in range(1, 6)]
    expected = ["warmup" if r < max(mask_round, 1) else "score" for r in range(1, 6)]
    assert [p.phase for p in phases if p is not None] == expected
    assert expected.count("warmup") == dense


def test_a_resumed_warm_up_keeps_its_number_of_dense_rounds() -> None:
    """The number is taken from the state, also if the configuration was edited."""
    begun = SSFL(FIT, 1, Discovery(PROBE, 0.5), 2).initialize(torch.ones(LAYOUT.size), context())
    second = Clock(2, 5)
    for method, state, phase in (
        (SSFL(FIT, 1, Discovery(PROBE, 0.5), 2), begun, "score"),
        (SSFL(FIT, 1, Discovery(PROBE, 0.5), 4), begun, "score"),
    ):
        plan = method.configure_round(state, second, context())
        assert plan is not None
        assert plan.phase == phase


def test_nothing_follows_the_last_round() -> None:
    after, state = Clock(6, 5), torch.ones(LAYOUT.size)
    methods: tuple[Algorithm[Any], ...] = (
        SSFL(FIT, 1, Discovery(PROBE, 0.5)),
        SharedRandomMask(FIT, 1, 0.5),
        ClientwiseRandomMask(FIT, 1, 0.5),
        FedAvg(FIT, 1),
    )
    for method in methods:
        assert method.configure_round(method.initialize(state, context()), after, context()) is None


def test_fine_tuning_comes_once_after_the_last_round_and_leaves_the_global_model() -> None:
    method = FedAvg(FIT, 1, fine_tune=FIT)
    state = method.initialize(torch.ones(LAYOUT.size), context())
    plan = method.configure_round(state, Clock(6, 5), context())
    assert plan is not None
    assert (plan.phase, len(plan.instructions), plan.timed) == ("fine_tune", 2, False)
    empty = [ClientReply(c, Payload({}, c), ClientReport(1)) for c in range(2)]
    state = method.aggregate(state, plan, empty, context())
    assert state.theta.equal(torch.ones(LAYOUT.size))
    assert method.configure_round(state, Clock(6, 5), context()) is None


@pytest.mark.parametrize(("scope", "per_layer"), [("global", None), ("layerwise", [2, 1])])
def test_shared_random_masks_cut_the_model(scope: Scope, per_layer: list[int] | None) -> None:
    method = SharedRandomMask(FIT, 1, 0.5, scope)
    state: MaskedState = method.initialize(torch.ones(LAYOUT.size), context())
    assert state.bits is not None
    assert int(state.bits.sum()) == 3
    if per_layer:
        assert [int(state.bits[a:b].sum()) for _, a, b in LAYOUT.prunable_segments] == per_layer
    assert state.theta.equal(LAYOUT.expand_mask(state.bits).float())
    other = method.initialize(torch.ones(LAYOUT.size), context(seed=7))
    assert other.bits is not None
    assert other.bits.equal(state.bits)


def test_misspelt_words_are_refused() -> None:
    with pytest.raises(ValueError, match="scope='globally': allowed are global, layerwise"):
        SharedRandomMask(FIT, 1, 0.5, "globally")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weighting='clients': allowed are examples, uniform"):
        Discovery(PROBE, 0.5, "clients")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ties='first': allowed are exact, keep"):
        Discovery(PROBE, 0.5, ties="first")  # type: ignore[arg-type]


def masked_inbox(bits: Tensor) -> tuple[Payload]:
    return (Payload({"w": Support.of(LAYOUT.expand_mask(bits)).pack(torch.ones(LAYOUT.size))}),)


def test_values_for_another_mask_are_refused() -> None:
    ours = torch.tensor([True, True, False, False, True, False])
    task, holding = masked_training(FIT, SupportMemo()), {"mask": ours}
    work, state = task.receive(masked_inbox(ours), holding, client_context())
    assert state is holding
    assert work["theta"].equal(LAYOUT.expand_mask(ours).float())
    with pytest.raises(ValueError, match="this side holds mask"):
        task.receive(masked_inbox(~ours), {"mask": ours}, client_context())
    with pytest.raises(ValueError, match="client 4 has no mask: send it with the values"):
        task.receive(masked_inbox(ours), {}, client_context(4))


@pytest.mark.parametrize("part", [MaskBits(torch.ones(5, dtype=torch.bool)), DenseValues(torch.ones(6))])
def test_a_mask_of_another_model_is_refused(part: MaskBits | DenseValues) -> None:
    with pytest.raises(ValueError, match="mask of 6 bits"):
        store_mask().receive((Payload({"mask": part}),), {}, client_context())


def test_a_client_keeps_the_mask_and_what_else_it_remembers() -> None:
    bits = torch.tensor([True, True, False, False, True, False])
    task = store_mask()
    before = {"other": torch.ones(1)}
    work, received = task.receive((Payload({"mask": MaskBits(bits)}),), before, client_context())
    payload, state = task.reply(work, None, received, client_context(3))
    assert set(before) == {"other"}
    assert (dict(payload.parts), payload.sender) == ({}, 3)
    assert set(state) == {"mask", "other"}
    assert state["mask"].equal(bits)


def test_scoring_without_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="without a probe"):
        score_saliency(PROBE, "examples").reply({}, None, {}, client_context())


def test_a_memo_is_no_state() -> None:
    """Other bits give another support, also if the caller changes the tensor after the call."""
    memo, bits = SupportMemo(), torch.tensor([True, True, False, False, True, False])
    first = memo.of(bits, LAYOUT)
    assert memo.of(bits.clone(), LAYOUT) is first
    assert memo.of(~bits, LAYOUT).mask.equal(LAYOUT.expand_mask(~bits))
    bits[0] = False
    assert memo.of(bits, LAYOUT).mask.equal(LAYOUT.expand_mask(bits))
    assert memo.of(bits, LAYOUT).mask.equal(LAYOUT.expand_mask(bits))


def test_threads_make_a_memos_support_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memo, bits, made = SupportMemo(), torch.tensor([True, True, False, False, True, False]), []
    together, slow = threading.Barrier(4), Support.of

    def counted(mask: Tensor, layout: Layout) -> Support:
        made.append(mask)
        time.sleep(0.05)
        return slow(mask, layout)

    monkeypatch.setattr(Support, "of", counted)

    def ask() -> Support:
        together.wait()
        return memo.of(bits, LAYOUT)

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(ask) for _ in range(4)]
    assert len(made) == 1
    assert all(future.result() is found[0].result() for future in found)


def test_a_memo_notices_bits_changed_in_place() -> None:
    memo, bits = SupportMemo(), torch.tensor([True, True, False, False, True, False])
    memo.of(bits, LAYOUT)
    bits[1] = False
    again = memo.of(bits, LAYOUT)
    assert again.mask.equal(LAYOUT.expand_mask(bits))
