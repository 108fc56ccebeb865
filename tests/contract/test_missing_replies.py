"""Any subset of a plan's clients may answer: with 30 % of all replies missing, every law of the table still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import SERVER, dense_values
from ssfl.engine.executors.executor import Executor
from ssfl.engine.simulator import Absence, SeededAbsence
from ssfl.wire.message import encode
from tests.contract.exchanged import Exchanged, to_the_end
from tests.contract.reading import (
    assert_densities,
    assert_support_of_uploads,
    assert_weighted_mean,
    per_tensor,
    sparse,
    timeless,
)
from tests.contract.table import (
    ALGORITHMS,
    DENSITY,
    EXECUTORS,
    GLOBAL,
    PERSONAL,
    REFERENCE,
    SHARED_MASK,
    SIZES,
    finished,
    models_of,
    new_rig,
    run_to_end,
)
from tests.support.memories import same_memory
from tests.support.resuming import kept_progress, resumed_from_each
from tests.support.rigs import Rig

Kind = Literal["absent", "lost"]
Numbers = npt.NDArray[np.float64]
FACTORED = "factored"
ROUNDS = 4
SHARE = 0.3
SEED = 2
"""With it every phase of every row lacks a reply, and none lacks them all (`test_every_phase_lacks_replies`)."""
KINDS: tuple[Kind, ...] = ("absent", "lost")
"""Clients that never work; replies of clients that have worked."""
NET = "batch"
"""The harder one: running statistics are means over those who answered, too."""

every_row = pytest.mark.parametrize("name", ALGORITHMS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def missing_rig(
    name: str, kind: Kind, executor: str | Executor = REFERENCE, wire: bool = False, share: float = SHARE
) -> Rig:
    missing: Mapping[str, Absence] = {kind: SeededAbsence(SEED, share)}
    return new_rig(name, NET, executor, wire, **missing)  # type: ignore[arg-type]


@cache
def with_missing(name: str, kind: Kind, executor: str = REFERENCE) -> tuple[Exchanged, ...]:
    return to_the_end(missing_rig(name, kind, executor), ROUNDS)


@cache
def with_all(name: str) -> tuple[Exchanged, ...]:
    return to_the_end(new_rig(name, NET), ROUNDS)


def end_of(exchanges: tuple[Exchanged, ...]) -> Tensor:
    rig = exchanges[-1].rig
    assert rig.loop.progress is not None
    return models_of(rig, rig.loop.progress)


def answered(exchange: Exchanged) -> set[int]:
    return {reply.client for reply in exchange.replies}


# ── the run ends, with the same exchanges ────────────────────────────────────────────────────────────────────────
@every_row
@every_kind
def test_every_phase_lacks_replies_and_the_run_has_all_its_exchanges(name: str, kind: Kind) -> None:
    run, whole = with_missing(name, kind), with_all(name)
    recorded = [[(e.event["event"], e.event["phase"], e.event["round"]) for e in r] for r in (run, whole)]
    assert recorded[0] == recorded[1]
    assert [n for kind_, _, n in recorded[0] if kind_ == "round"] == list(range(1, ROUNDS + 1))
    lacking = {e.plan.phase for e in run if len(e.replies) < len(e.plan.instructions)}
    assert lacking == {e.plan.phase for e in whole}
    assert bool(end_of(run).isfinite().all())
    # Where results are the clients' own, a reply that is lost after the work takes nothing from them.
    assert end_of(run).equal(end_of(whole)) == (kind == "lost" and name in PERSONAL)


@every_row
@every_kind
def test_who_is_missing_is_told(name: str, kind: Kind) -> None:
    run = with_missing(name, kind)
    absent = SeededAbsence(SEED, SHARE)
    for exchange in run:
        asked = {i.client for i in exchange.plan.instructions}
        assert answered(exchange) == asked - set(absent(exchange.plan))
        assert exchange.event["clients"] == len(exchange.replies)
        assert exchange.event.get("missing_replies", 0) == len(asked) - len(exchange.replies)
    warnings = [
        e["message"] for e in run[0].rig.events if e["event"] == "warning" and "answered" in e["message"]
    ]
    assert warnings == [
        f"phase {e.plan.phase}: {len(e.replies)} of {len(e.plan.instructions)} clients answered; "
        "the run continues without the others"
        for e in run
        if not e.plan.timed
    ]


@every_row
@every_kind
def test_only_who_answered_counts_on_the_scoreboard(name: str, kind: Kind) -> None:
    run = with_missing(name, kind)
    before: list[float | None] | None = None
    for exchange in run:
        now = exchange.event.get("client_accuracy")
        if now is None:
            continue
        for reply in exchange.replies:
            tested = reply.report.tallies.get("trained")
            assert tested is None or now[reply.client] == tested.accuracy
        if before is not None and exchange.plan.timed:
            silent = set(range(len(SIZES))) - answered(exchange)
            assert all(now[client] == before[client] for client in silent)
        before = now
    assert before is not None


# ── means over those who answered ────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", [n for n in SHARED_MASK if not n.startswith("random") and n != "ssfl_floor"])
@every_kind
def test_the_mask_is_that_of_the_scores_that_arrived(name: str, kind: Kind) -> None:
    """Weights are n_k over the sum of those who answered; the mask is the largest, by numpy."""
    (scoring,) = (e for e in with_missing(name, kind) if e.plan.phase == "score")
    weights = [1 if name == "ssfl_uniform" else SIZES[r.client] for r in scoring.replies]
    sent = [
        dense_values(r.payload.parts["factors" if FACTORED in name else "scores"]) for r in scoring.replies
    ]
    mean = np.average(np.stack([part.numpy() for part in sent]), axis=0, weights=weights)
    layout = scoring.rig.context.layout
    if FACTORED in name:
        mean = outer_products(mean, layout.take_prunable(scoring.rig.theta).numpy(), layout)
    kept = np.zeros(len(mean), dtype=bool)
    kept[np.argsort(-mean, kind="stable")[: int(len(mean) * DENSITY)]] = True
    found = scoring.after.bits.numpy()
    if "shuffled" not in name:
        assert found.tolist() == kept.tolist()
        return
    assert found.tolist() != kept.tolist()  # other positions, as many in every layer
    counts = [[int(bits[a:b].sum()) for _, a, b in layout.prunable_segments] for bits in (found, kept)]
    assert counts[0] == counts[1]


def outer_products(factors: Numbers, weights: Numbers, layout: Layout) -> Numbers:
    """|w| times (row x column x position factor) / mean factor squared, layer by layer."""
    scores, first = [], 0
    shapes = [s for s, p in zip(layout.shapes, layout.prunable, strict=True) if p]
    for shape, (_, a, b) in zip(shapes, layout.prunable_segments, strict=True):
        rows, columns, positions = shape[0], shape[1], int(np.prod(shape[2:]))
        own = factors[first : first + rows + columns + positions]
        first += rows + columns + positions
        r, c, t = np.split(own, [rows, rows + columns])
        product = np.einsum("i,j,t->ijt", r, c, t).reshape(-1) / r.mean() ** 2
        scores.append(np.abs(weights[a:b]) * product)
    return np.concatenate(scores)


@pytest.mark.parametrize("name", GLOBAL)
@every_kind
def test_a_round_is_the_weighted_mean_of_those_who_answered(name: str, kind: Kind) -> None:
    for exchange in with_missing(name, kind):
        if exchange.plan.timed:
            assert_weighted_mean(name, exchange)


# ── densities ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", SHARED_MASK)
@every_kind
def test_a_shared_mask_keeps_its_density_exactly(name: str, kind: Kind) -> None:
    assert_densities(name, with_missing(name, kind), ROUNDS)


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n.startswith(("dispfl", "random_clientwise"))])
@every_kind
def test_personal_masks_keep_their_size_tensor_by_tensor(name: str, kind: Kind) -> None:
    sizes: dict[int, list[int]] = {}
    run = with_missing(name, kind)
    layout = run[0].rig.context.layout
    for exchange in run:
        for reply in exchange.replies:
            counts = per_tensor(layout, sparse(reply.payload).bits)
            assert counts == sizes.setdefault(reply.client, counts)
    if name == "random_clientwise":
        return
    # The next round's, of those who were never heard of too.
    for client, state in run[-1].rig.states().items():
        counts = per_tensor(layout, state["mask"])
        assert counts == sizes.setdefault(client, counts)
        assert sum(counts) == pytest.approx(DENSITY * layout.trained_size, abs=sum(layout.trained))


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n.startswith("sparsyfed")])
@every_kind
def test_the_union_of_the_uploads_that_arrived_is_the_global_support(name: str, kind: Kind) -> None:
    for exchange in with_missing(name, kind):
        assert_support_of_uploads(exchange)


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────
@every_row
@every_kind
def test_the_ledger_counts_what_was_sent_and_what_arrived(name: str, kind: Kind) -> None:
    """The bytes of every message to any client, and of the replies that arrived."""
    totals = {"downlink_bytes": 0, "uplink_bytes": 0, "peer_bytes": 0}
    run = with_missing(name, kind)
    for exchange in run:
        sent = [payload for inbox in exchange.delivered.values() for payload in inbox]
        assert exchange.delivered.keys() == {i.client for i in exchange.plan.instructions}
        counted = {
            "downlink_bytes": sum(len(encode(p)) for p in sent if p.sender == SERVER),
            "uplink_bytes": sum(len(encode(r.payload)) for r in exchange.replies),
            "peer_bytes": sum(len(encode(p)) for p in sent if p.sender != SERVER),
        }
        assert counted == {field: exchange.event.get(field, 0) for field in counted}
        totals = {field: total + counted[field] for field, total in totals.items()}
    progress = run[-1].rig.loop.progress
    assert progress is not None
    assert totals == {field: getattr(progress.ledger, field) for field in totals}
    assert progress.ledger.train_flops == sum(r.report.train_flops for e in run for r in e.replies)


# ── the same everywhere ──────────────────────────────────────────────────────────────────────────────────────────
@every_row
@every_kind
@pytest.mark.parametrize("executor", [e for e in EXECUTORS if e != REFERENCE])
def test_every_executor_computes_the_same(name: str, kind: Kind, executor: str) -> None:
    reference, other = with_missing(name, kind), with_missing(name, kind, executor)
    torch.testing.assert_close(end_of(other), end_of(reference), rtol=0, atol=1e-10)
    for ours, theirs in zip(other, reference, strict=True):
        assert answered(ours) == answered(theirs)
        exact = ("phase", "round", "clients", "missing_replies", "density", "train_flops", "global_accuracy")
        for field in (*exact, "client_accuracy", "downlink_bytes", "uplink_bytes", "peer_bytes"):
            assert ours.event.get(field) == theirs.event.get(field), field


@every_row
@every_kind
def test_worker_processes_end_in_the_same_bits(
    name: str, kind: Kind, workers: Callable[[str], Executor]
) -> None:
    rig, reference = missing_rig(name, kind, workers(name)), with_missing(name, kind)
    assert run_to_end(rig, ROUNDS).equal(end_of(reference))
    assert timeless(rig.events) == timeless(reference[-1].rig.events)


@every_row
@every_kind
def test_a_resume_from_any_checkpoint_ends_in_the_same_bits(name: str, kind: Kind, tmp_path: Path) -> None:
    first = missing_rig(name, kind, wire=True)
    kept = kept_progress(first, tmp_path)
    reference = with_missing(name, kind)
    assert run_to_end(first, ROUNDS).equal(end_of(reference))
    assert len(kept) == len(reference)
    runs = resumed_from_each(kept, lambda: missing_rig(name, kind), end_of(reference), first.events)
    for fresh, end in runs:
        assert first.loop.progress is not None
        assert end.ledger == first.loop.progress.ledger
        ours, theirs = fresh.recorder.client_memories(), reference[-1].rig.recorder.client_memories()
        assert ours.keys() == theirs.keys()
        assert all(same_memory(ours[c].load(), theirs[c].load()) for c in theirs)


# ── what missing replies do not change ───────────────────────────────────────────────────────────────────────────
@every_row
@every_kind
def test_with_nothing_missing_nothing_differs(name: str, kind: Kind) -> None:
    """`SeededAbsence` of nobody, and an exchange that could drop replies, against neither of them."""
    rig, whole = missing_rig(name, kind, share=0.0), finished(name, NET)
    assert run_to_end(rig).equal(whole.models)
    assert timeless(rig.events) == timeless(whole.rig.events)


@pytest.mark.parametrize("name", GLOBAL)
def test_a_lost_reply_is_an_absent_client_to_the_server(name: str) -> None:
    """Whether a silent client has worked shows nowhere in the global model, nor in the ledger."""
    absent, lost = with_missing(name, "absent"), with_missing(name, "lost")
    assert end_of(absent).equal(end_of(lost))
    assert timeless(absent[-1].rig.events) == timeless(lost[-1].rig.events)


@every_row
def test_a_client_that_never_answers_leaves_no_trace(name: str) -> None:
    rig = new_rig(name, NET, absent=lambda plan: [4])
    run = to_the_end(rig, ROUNDS)
    assert any(4 in e.delivered for e in run)
    assert all(4 not in answered(e) for e in run)
    assert 4 not in rig.recorder.client_memories()
    accuracies = [e.event["client_accuracy"][4] for e in run if "client_accuracy" in e.event]
    assert len(set(accuracies)) == 1  # the initial model's
