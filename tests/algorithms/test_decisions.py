"""What a method decides, on vectors made by hand: cohorts, masks, refusals."""

from __future__ import annotations

from collections.abc import Sequence
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
from ssfl.algorithms.masked import MaskedState, MaskedTraining, StoreMask, SupportMemo
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.algorithms.ssfl import SSFL, Discovery, ScoreSaliency
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, MaskBits, Payload, Support
from ssfl.core.saliency import snip

FIT = FitSpec(1, 8, ExponentialDecay(0.1, 1.0))
PROBE = Probe(snip, 1, 8)
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
    uniform = Discovery(PROBE, 0.34, "uniform").mask(replies, plan, context())
    weighted = Discovery(PROBE, 0.34).mask(replies, plan, context())
    assert uniform.int().tolist() == [1, 1, 0, 0, 0, 0]  # the tie of 2 and 2 goes to the lower index
    assert weighted.int().tolist() == [0, 1, 0, 1, 0, 0]
    kept = Discovery(PROBE, 0.34, "uniform", ties="keep").mask(replies, plan, context())
    assert kept.int().tolist() == [1, 1, 1, 0, 0, 0]
    floored = Discovery(PROBE, 0.34, "uniform", floor_density=0.1).mask(replies, plan, context())
    assert floored.int().tolist() == [1, 0, 0, 0, 1, 0]


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
    assert (plan.phase, [i.client for i in plan.instructions]) == ("adopt", list(range(6)))
    sent = plan.instructions[0].inbox[0].parts["mask"]
    assert isinstance(sent, MaskBits)
    assert sent.bits.int().tolist() == [1, 1, 1, 0, 0, 0]


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
def test_shared_random_masks_cut_the_model(scope: str, per_layer: list[int] | None) -> None:
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


def masked_inbox(bits: Tensor) -> tuple[Payload]:
    return (Payload({"w": Support.of(LAYOUT.expand_mask(bits)).pack(torch.ones(LAYOUT.size))}),)


def test_values_for_another_mask_are_refused() -> None:
    ours = torch.tensor([True, True, False, False, True, False])
    task = MaskedTraining(FIT)
    work = task.receive(masked_inbox(ours), {"mask": ours}, client_context())
    assert work["theta"].equal(LAYOUT.expand_mask(ours).float())
    with pytest.raises(ValueError, match="this side holds mask"):
        task.receive(masked_inbox(~ours), {"mask": ours}, client_context())
    with pytest.raises(ValueError, match="client 4 holds no mask yet"):
        task.receive(masked_inbox(ours), {}, client_context(4))


@pytest.mark.parametrize("part", [MaskBits(torch.ones(5, dtype=torch.bool)), DenseValues(torch.ones(6))])
def test_a_mask_of_another_model_is_refused(part: MaskBits | DenseValues) -> None:
    with pytest.raises(ValueError, match="mask of 6 bits"):
        StoreMask().receive((Payload({"mask": part}),), {}, client_context())


def test_a_client_keeps_the_mask_and_what_else_it_remembers() -> None:
    bits = torch.tensor([True, True, False, False, True, False])
    task = StoreMask()
    work = task.receive((Payload({"mask": MaskBits(bits)}),), {}, client_context())
    payload, state = task.reply(work, None, {"other": torch.ones(1)}, client_context(3))
    assert (dict(payload.parts), payload.sender) == ({}, 3)
    assert set(state) == {"mask", "other"}
    assert state["mask"].equal(bits)


def test_scoring_without_a_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="without a probe"):
        ScoreSaliency(PROBE).reply({}, None, {}, client_context())


def test_a_memo_is_no_state() -> None:
    """Other bits give another support, also when the caller changes the tensor it asked with."""
    memo, bits = SupportMemo(), torch.tensor([True, True, False, False, True, False])
    first = memo.of(bits, LAYOUT)
    assert memo.of(bits.clone(), LAYOUT) is first
    assert memo.of(~bits, LAYOUT).mask.equal(LAYOUT.expand_mask(~bits))
    bits[0] = False
    assert memo.of(bits, LAYOUT).mask.equal(LAYOUT.expand_mask(bits))
    assert memo.of(bits, LAYOUT).mask.equal(LAYOUT.expand_mask(bits))


def test_a_memo_notices_bits_changed_in_place() -> None:
    memo, bits = SupportMemo(), torch.tensor([True, True, False, False, True, False])
    memo.of(bits, LAYOUT)
    bits[1] = False
    again = memo.of(bits, LAYOUT)
    assert again.mask.equal(LAYOUT.expand_mask(bits))
