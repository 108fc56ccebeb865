"""Ranks that divide a cohort: the division, equal bits on all ranks, and failures that reach all ranks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssfl.algorithms.base import Algorithm, Clock, Probe
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.assemble.loop import first_progress
from ssfl.config import ConfigError
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, MaskedValues, Payload, SparseValues
from ssfl.core.reading import raw_bytes
from ssfl.core.saliency import SALIENCIES
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.client.errors import DivergedError
from ssfl.engine.client.job import ClientJob
from ssfl.engine.executors.distributed.executor import RankedExecutor, shares
from ssfl.engine.executors.distributed.link import (
    Alone,
    Link,
    RankError,
    RefusedByFirstRank,
    first_decides,
    from_bytes,
    to_bytes,
)
from ssfl.engine.executors.distributed.means import UnequalRepliesError, outlines, same
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.simulator import Absence, SeededAbsence, all_answer
from ssfl.engine.state.checkpoint import COMMON_RECORDS
from ssfl.engine.state.progress import Progress
from ssfl.engine.state.serialization import Packer
from ssfl.wire.coding import Coding
from ssfl.wire.log import Log
from ssfl.wire.stack import WireStack
from ssfl.wire.uniform import Uniform
from tests.support.ranks import MAKING, ThreadLink, on_ranks
from tests.support.rigs import Rig, float_data, make_rig, make_runner, states_of, tiny_net

T = TypeVar("T")
FIT = FitSpec(epochs=2, batch_size=8, schedule=ExponentialDecay(0.1, 0.99), momentum=0.9, clip_norm=10.0)
PROBE = Probe(SALIENCIES["ssfl"], 1, 8)
METHODS: dict[str, Callable[[], Algorithm[Any]]] = {
    "fedavg": lambda: FedAvg(FIT, 2),
    "ssfl": lambda: SSFL(FIT, 3, Discovery(PROBE, 0.5)),
    "dispfl": lambda: DisPFL(FIT, 0.5, neighbour_count=2),
    "ssfl_uniform": lambda: SSFL(FIT, 3, Discovery(PROBE, 0.5, weighting="uniform"), mask_round=2),
    "fedavg_ft": lambda: FedAvg(FIT, 2, fine_tune=FIT),
    "sparsyfed": lambda: SparsyFed(FIT, 3, 0.5),
}


def ranked_rig(
    link: Link,
    method: str,
    norm: str = "group",
    by_mean: bool = False,
    absent: Absence = all_answer,
    coding: tuple[Coding, Coding] | None = None,
) -> Rig:
    """The same run on every rank, with separate objects.

    Threads share PyTorch's default generator: networks are made one at a time, before any rank trains.
    """
    with MAKING:
        algorithm, data, module = METHODS[method](), float_data(), tiny_net(norm)
    if isinstance(link, ThreadLink):
        link.shared.barrier.wait()
    stack = None
    if coding is not None:
        stack = WireStack(Layout.of(module), 7, coding[:1], coding[1:], versions=3)
    runner = make_runner(data, module, algorithm.tasks, wire=stack)
    executor = RankedExecutor(SequentialExecutor(runner), runner, link, by_mean=by_mean)
    return make_rig(algorithm, data, module, executor=executor, absent=absent, stack=stack)


def finished(rig: Rig, rounds: int = 3) -> Progress:
    return rig.loop.run(rig.loop.start(rig.theta, rounds))


def bits(progress: Progress) -> bytes:
    """The content of a checkpoint as bytes, without times."""
    return to_bytes((progress.state, progress.clock, progress.scoreboard, dict(progress.client_memories)))


def contents(progress: Progress) -> str:
    """The content regardless of shared tensors: ranks have copies where one process shares a tensor."""
    packer = Packer()
    body = json.dumps(
        packer.pack((progress.state, progress.clock, progress.scoreboard, dict(progress.client_memories)))
    )
    digests = {name: hashlib.sha256(raw_bytes(t)).hexdigest() for name, t in packer.tensors.items()}
    return re.sub(r'\{"tensor": "(t\d+)"\}', lambda found: digests[found.group(1)], body)


def numbers(rig: Rig) -> list[dict[str, Any]]:
    """The events without times."""
    return [{k: v for k, v in e.items() if not k.endswith("_seconds")} for e in rig.events]


# ── who computes what ────────────────────────────────────────────────────────────────────────────────────────────
@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 6))
def test_shares_are_a_balanced_partition(examples: list[int], size: int) -> None:
    parts = shares(examples, size)
    assert len(parts) == size
    assert sorted(i for part in parts for i in part) == list(range(len(examples)))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(max(examples[i], 1) for i in part) for part in parts]
    # The most loaded rank got its last job when it was the least loaded, so it is at most one job ahead.
    assert max(loads) - min(loads) <= max([1, *examples])


def test_shares_by_hand() -> None:
    assert shares([5, 9, 4, 4, 3], 2) == [[1, 3], [0, 2, 4]]
    assert shares([7], 3) == [[0], [], []]
    assert shares([], 2) == [[], []]


# ── equal bits ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", ["fedavg", "ssfl", "dispfl"])
@pytest.mark.parametrize(("size", "missing"), [(2, 0.0), (3, 0.0), (2, 0.3)])
def test_every_rank_ends_with_the_bits_of_one_process(method: str, size: int, missing: float) -> None:
    """Also if some clients do not answer: every rank draws the same clients."""
    alone = ranked_rig(Alone(), method, absent=SeededAbsence(2, missing))
    wanted = bits(finished(alone))
    assert any("missing_replies" in e for e in alone.events) == (missing > 0)

    def work(link: Link) -> tuple[bytes, list[dict[str, Any]]]:
        rig = ranked_rig(link, method, absent=SeededAbsence(2, missing))
        return bits(finished(rig)), numbers(rig)

    for result in on_ranks(size, work):
        assert not isinstance(result, Exception), result
        assert result[0] == wanted
        assert result[1] == numbers(alone)


def test_running_statistics_cross_too() -> None:
    wanted = bits(finished(ranked_rig(Alone(), "fedavg", "batch")))
    assert on_ranks(2, lambda link: bits(finished(ranked_rig(link, "fedavg", "batch")))) == [wanted, wanted]


def test_more_ranks_than_clients_and_test_batches() -> None:
    """Five clients, one evaluation batch: some ranks have no work."""
    wanted = bits(finished(ranked_rig(Alone(), "fedavg"), rounds=1))
    assert on_ranks(5, lambda link: bits(finished(ranked_rig(link, "fedavg"), rounds=1))) == [wanted] * 5


def test_what_the_plan_already_said_is_not_sent_again() -> None:
    """In the phase that stores the mask, every client state has the broadcast tensor, and ranks send no mask."""

    def work(link: Link) -> list[int]:
        assert isinstance(link, ThreadLink)
        rig = ranked_rig(link, "ssfl")
        progress = rig.loop.start(rig.theta, 1)
        for phase in ("score", "store_mask"):
            link.sent.clear()
            plan = rig.plan(progress.state, progress.clock)
            assert plan.phase == phase
            progress, _ = rig.loop.step(progress, plan)
        memory = [s["mask"].data_ptr() for s in states_of(progress.client_memories).values()]
        assert len(set(memory)) == 1
        return link.sent

    small = 3000  # JSON of a few replies; the tensors of tiny_net's mask alone are 396 bytes per client
    for sent in on_ranks(2, work):
        assert not isinstance(sent, Exception), sent
        assert sent[0] < small


def test_go_on_from_the_first_ranks_checkpoint() -> None:
    """All ranks continue from rank 0's progress, whatever their own initial models are."""
    straight = ranked_rig(Alone(), "dispfl")
    wanted = bits(finished(straight, 3))
    half = ranked_rig(Alone(), "dispfl")
    saved = half.step(half.loop.start(half.theta, 3))

    def work(link: Link) -> bytes:
        rig = ranked_rig(link, "dispfl")
        parts: Any = rig  # on a resume, first_progress only uses the method's records
        progress = first_progress(rig.loop, parts, None if link.rank else saved, link)
        rig.recorder.restore(progress.client_memories)
        return bits(rig.loop.run(progress))

    assert on_ranks(2, work) == [wanted, wanted]


# ── codecs ───────────────────────────────────────────────────────────────────────────────────────────────────────
CODING = (
    Coding(Uniform(0.05), Uniform(0.05, of="values"), masks="coded", smaller=True),
    Coding(Uniform(0.05), Uniform(0.5), Log(), "coded", feedback=True),
)


@pytest.mark.parametrize("method", ["fedavg", "ssfl", "dispfl", "sparsyfed"])
def test_codecs_give_every_rank_the_bits_of_one_process(method: str) -> None:
    """The compared progress includes residuals and held values."""
    alone = ranked_rig(Alone(), method, coding=CODING)
    wanted = contents(finished(alone))

    def work(link: Link) -> tuple[str, list[dict[str, Any]]]:
        rig = ranked_rig(link, method, coding=CODING)
        return contents(finished(rig)), numbers(rig)

    for result in on_ranks(2, work):
        assert not isinstance(result, Exception), result
        assert result == (wanted, numbers(alone))


@pytest.mark.parametrize("method", ["fedavg", "ssfl"])
def test_means_are_of_decoded_replies_and_bytes_of_coded_ones(method: str) -> None:
    """With one reduction, the model equals that of one process to rounding, or to one step of the codec."""
    alone = ranked_rig(Alone(), method, coding=CODING)
    finished(alone)

    def work(link: Link) -> tuple[Tensor, list[dict[str, Any]]]:
        rig = ranked_rig(link, method, by_mean=True, coding=CODING)
        weights = rig.algorithm.weights_to_evaluate(finished(rig).state, rig.context)
        assert weights is not None
        return weights, numbers(rig)

    assert alone.loop.progress is not None
    exact = alone.algorithm.weights_to_evaluate(alone.loop.progress.state, alone.context)
    assert exact is not None
    for result in on_ranks(2, work):
        assert not isinstance(result, Exception), result
        assert float((result[0] - exact).norm() / exact.norm()) < 1e-3
        for ours, theirs in zip(result[1], numbers(alone), strict=True):
            assert ours["uplink_bytes"] == pytest.approx(theirs["uplink_bytes"], rel=0.02)
            assert ours["downlink_bytes"] == pytest.approx(theirs["downlink_bytes"], rel=0.02)


# ── one reduction ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_mean_over_ranks_is_the_mean_of_one_process(method: str, norm: str, missing: float) -> None:
    """Models are equal to rounding; bytes and counts of every client are equal."""
    alone = ranked_rig(Alone(), method, norm, absent=SeededAbsence(2, missing))
    wanted = finished(alone)

    def work(link: Link) -> tuple[Progress, list[dict[str, Any]]]:
        rig = ranked_rig(link, method, norm, by_mean=True, absent=SeededAbsence(2, missing))
        return finished(rig), numbers(rig)

    for result in on_ranks(3, work):
        assert not isinstance(result, Exception), result
        progress, events = result
        weights = alone.algorithm.weights_to_evaluate(wanted.state, alone.context)
        if weights is not None:
            found = alone.algorithm.weights_to_evaluate(progress.state, alone.context)
            assert found is not None
            torch.testing.assert_close(found, weights, rtol=0, atol=1e-10)
        assert progress.ledger.uplink_bytes == wanted.ledger.uplink_bytes
        for mine, theirs in zip(events, numbers(alone), strict=True):
            assert {k: v for k, v in mine.items() if not isinstance(v, float)} == {
                k: v for k, v in theirs.items() if not isinstance(v, float)
            }
            floats = {k: v for k, v in theirs.items() if isinstance(v, float)}
            assert {k: mine[k] for k in floats} == pytest.approx(floats, rel=1e-9, abs=1e-9)


def test_ranks_by_mean_agree_to_the_bit_among_themselves_and_with_a_repeat() -> None:
    def work(link: Link) -> bytes:
        return bits(finished(ranked_rig(link, "ssfl", by_mean=True)))

    first, second = on_ranks(2, work), on_ranks(2, work)
    assert first[0] == first[1] == second[0] == second[1]


def test_one_sum_crosses_instead_of_the_replies() -> None:
    """Bytes that a rank sends in a round: four clients' replies of tiny_net in float64, or one vector."""

    def bytes_of(by_mean: bool) -> Callable[[Link], int]:
        def work(link: Link) -> int:
            assert isinstance(link, ThreadLink)
            rig = ranked_rig(link, "fedavg", by_mean=by_mean)
            jobs = jobs_of(rig, range(4), rig.theta)
            link.sent.clear()
            list(rig.executor.run(jobs))
            return sum(link.sent)

        return work

    model = 8 * Layout.of(tiny_net()).size
    (gathered, _), (added, _) = on_ranks(2, bytes_of(False)), on_ranks(2, bytes_of(True))
    assert isinstance(gathered, int)
    assert isinstance(added, int)
    assert 2 * model <= gathered
    assert model <= added < 2 * model


def test_more_ranks_than_clients_and_a_mean() -> None:
    wanted = finished(ranked_rig(Alone(), "fedavg"), rounds=1)
    for result in on_ranks(5, lambda link: finished(ranked_rig(link, "fedavg", by_mean=True), rounds=1)):
        assert not isinstance(result, Exception), result
        torch.testing.assert_close(result.state.theta, wanted.state.theta, rtol=0, atol=1e-10)


def test_a_failure_on_one_rank_comes_before_the_sum() -> None:
    def work(link: Link) -> None:
        rig = ranked_rig(link, "fedavg", by_mean=True)
        if link.rank == 1:
            rig.executor.inner = Broken()  # type: ignore[attr-defined]
        list(rig.executor.run(jobs_of(rig, range(2), rig.theta)))

    first, second = on_ranks(2, work)
    assert isinstance(second, OSError)
    assert str(first) == "rank 1 stopped: OSError: no space left"


def test_what_has_no_mean_says_so() -> None:
    sparse = Payload({"w": SparseValues(torch.ones(1), torch.tensor([True, False]))})
    with pytest.raises(UnequalRepliesError, match="averaged_by"):
        outlines(sparse)
    dense, masked = (
        Payload({"w": DenseValues(torch.ones(2))}),
        Payload({"w": MaskedValues(torch.ones(2), b"8 bytes!")}),
    )
    with pytest.raises(UnequalRepliesError, match="differ"):
        same([outlines(dense), outlines(masked)])


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────
def jobs_of(rig: Rig, clients: range, theta: Tensor) -> list[ClientJob]:
    payload = Payload({"w": DenseValues(theta)})
    return [ClientJob("train", c, (payload,), Clock(1, 3)) for c in clients]


def test_a_client_that_diverges_ends_all_ranks_alike() -> None:
    def work(link: Link) -> None:
        rig = ranked_rig(link, "fedavg")
        rig.loop.run(rig.loop.start(torch.full_like(rig.theta, 1e200), 2))

    errors = on_ranks(2, work)
    assert all(isinstance(e, DivergedError) and "round 1" in str(e) for e in errors), errors


def test_another_ranks_failure_is_named() -> None:
    def work(link: Link) -> None:
        rig = ranked_rig(link, "fedavg")
        jobs = jobs_of(rig, range(2), rig.theta)
        if link.rank == 1:
            rig.executor.inner = Broken()  # type: ignore[attr-defined]
        list(rig.executor.run(jobs))

    first, second = on_ranks(2, work)
    assert isinstance(second, OSError)
    assert isinstance(first, RankError)
    assert str(first) == "rank 1 stopped: OSError: no space left"


class Broken:
    """An executor whose machine fails."""

    def run(self, jobs: Any) -> Any:
        raise OSError("no space left")


@pytest.mark.parametrize("difference", ["clients", "model"])
def test_ranks_of_different_runs_refuse_each_other(difference: str) -> None:
    def work(link: Link) -> None:
        rig = ranked_rig(link, "fedavg")
        other = link.rank == 1
        clients = range(1, 3) if other and difference == "clients" else range(2)
        list(
            rig.executor.run(
                jobs_of(rig, clients, rig.theta + (1e-9 if other and difference == "model" else 0))
            )
        )

    errors = on_ranks(2, work)
    assert all(isinstance(e, RankError) and "does not compute the same run" in str(e) for e in errors), errors


def test_the_first_rank_decides() -> None:
    assert on_ranks(3, lambda link: first_decides(link, lambda: ("a", link.rank))) == [("a", 0)] * 3
    assert first_decides(Alone(), lambda: 3) == 3


def test_the_first_ranks_failure_reaches_all() -> None:
    def fail() -> int:
        raise ValueError("no such thing")

    first, second = on_ranks(2, lambda link: first_decides(link, fail))
    assert type(first) is ValueError
    assert type(second) is RankError
    assert str(second) == "rank 0 stopped: no such thing"


def test_the_first_ranks_refusal_of_bad_input_reaches_all_as_such() -> None:
    """The other ranks know that the first one prints the error."""

    def refuse() -> int:
        raise ConfigError("model.dense_ratio", "model.dense_ratio=7: at most 1")

    first, second, third = on_ranks(3, lambda link: first_decides(link, refuse))
    assert type(first) is ConfigError
    for other in (second, third):
        assert type(other) is RefusedByFirstRank
        assert str(other) == "model.dense_ratio=7: at most 1"


def test_bytes_hold_tensors_that_share_memory() -> None:
    x = torch.arange(6.0)
    value = Progress((x, x[:3], x.view(2, 3), x, torch.empty(0)), Clock(1, 2), None, Ledger(1, 2, 3, 4, 0.5))
    back = from_bytes(to_bytes(value), COMMON_RECORDS)
    assert [t.tolist() for t in back.state] == [t.tolist() for t in value.state]
    assert back.state[0] is back.state[3]
