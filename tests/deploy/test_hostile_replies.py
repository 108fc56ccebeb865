"""Replies that decode but cannot be summed, or decode to far more than was asked for: only the reply is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from ssfl.algorithms.base import Clock, sample_clients
from ssfl.core.factored import factored_size
from ssfl.core.payloads import DenseValues, MaskBits, MaskedValues, Part, Payload, SparseValues
from ssfl.core.reading import octets
from ssfl.deploy.protocol import messages
from ssfl.deploy.transport.port import Message
from ssfl.engine.coded_exchange import ServerCoder
from ssfl.wire.coding import Coding, coded
from ssfl.wire.holdings import State
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.mask_codec import PACKED, encode_packed
from ssfl.wire.parts import CodedMask, CodedValues
from ssfl.wire.stack import Hop, WireStack
from ssfl.wire.uniform import Uniform
from tests.contract.table import PER_ROUND, ROUNDS
from tests.deploy.fake_fleet import Bench, make_bench
from tests.deploy.faulty import LAYOUT, deployed, in_work, simulated, with_payload

P, N = LAYOUT.size, LAYOUT.prunable_size
ZEROS = torch.zeros(P, dtype=torch.float64)
Parts = Mapping[str, Part]


def exact() -> WireStack:
    """As `communication.profile=exact`: only masks are coded."""
    return WireStack(LAYOUT, 7, [Coding(masks="coded")])


def small() -> WireStack:
    """As `communication.profile=small`."""
    up = Coding(Uniform(0.05), Uniform(0.5), Log(64, 5), "coded")
    return WireStack(LAYOUT, 7, [Coding(Uniform(0.05), masks="coded")], [up])


def lossless(part: DenseValues) -> CodedValues:
    found = coded(part, Lossless(), None, LAYOUT, torch.Generator())
    assert isinstance(found, CodedValues)
    return found


def dense(count: int, value: float = 1.0, dtype: torch.dtype = torch.float64) -> DenseValues:
    return DenseValues(torch.full((count,), value, dtype=dtype))


def bits(count: int) -> MaskBits:
    return MaskBits(torch.ones(count, dtype=torch.bool))


def sparse(count: int) -> SparseValues:
    return SparseValues(torch.ones(count, dtype=torch.float64), bits(count).bits)


FACTORS = factored_size(LAYOUT)
EXACT_REPLIES: Mapping[str, tuple[str, str, Parts, str]] = {
    # method, phase, parts, reason
    "no_scores": ("ssfl", "score", {}, "part scores is missing"),
    "scores_as_a_mask": ("ssfl", "score", {"scores": bits(N)}, "a mask instead of values"),
    "scores_as_a_coded_mask": (
        "ssfl",
        "score",
        {"scores": CodedMask(PACKED, N, octets(encode_packed(bits(N).bits)))},
        "a mask instead of values",
    ),
    "scores_coded": (
        "ssfl",
        "score",
        {"scores": lossless(dense(N))},
        "coded values, for which this run has no",
    ),
    "scores_sparse": (
        "ssfl",
        "score",
        {"scores": sparse(N)},
        "values with their mask, expected dense values",
    ),
    "scores_too_few": ("ssfl", "score", {"scores": dense(N - 1)}, f"{N - 1} values, expected {N}"),
    "scores_and_more": ("ssfl", "score", {"scores": dense(N), "w": dense(P)}, "part 'w' was not asked for"),
    "scores_nan": ("ssfl", "score", {"scores": dense(N, torch.nan)}, "not finite"),
    "scores_that_overflow": ("ssfl", "score", {"scores": dense(N, 1e300)}, "above 2^64"),
    "scores_of_another_type": (
        "ssfl",
        "score",
        {"scores": dense(N, 1.0, torch.float16)},
        "type torch.float16",
    ),
    "factors_too_few": ("ssfl_factored", "score", {"factors": dense(FACTORS - 1)}, f"expected {FACTORS}"),
    "factors_missing": ("ssfl_factored", "score", {"scores": dense(N)}, "part 'scores' was not asked for"),
    "weights_coded": (
        "fedavg",
        "train",
        {"w": lossless(dense(P))},
        "coded values, for which this run has no",
    ),
    "weights_sparse": ("fedavg", "train", {"w": sparse(P)}, "values with their mask, expected dense values"),
    "weights_on_a_mask": (
        "fedavg",
        "train",
        {"w": MaskedValues(ZEROS, bytes(8))},
        "values on mask 0000000000000000",
    ),
    "weights_of_another_type": ("fedavg", "train", {"w": dense(P, 1.0, torch.float32)}, "type torch.float32"),
    "weights_minus_infinity": ("fedavg", "train", {"w": dense(P, -torch.inf)}, "not finite"),
    "sparse_weights_dense": (
        "sparsyfed",
        "train",
        {"w": dense(P)},
        "dense values, expected values with their mask",
    ),
    "sparse_weights_of_another_model": ("random_clientwise", "train", {"w": sparse(P - 1)}, f"expected {P}"),
    "acknowledgement_with_values": ("ssfl", "store_mask", {"w": dense(P)}, "part 'w' was not asked for"),
}


def answering(parts: Parts, client: int) -> Callable[[Message, messages.Done], Message]:
    return lambda answer, reply: with_payload(reply, Payload(parts, client))


def attacked(name: str, phase: str, parts: Parts, wire: WireStack | None) -> tuple[Bench, int]:
    """A bench in which the first client of the phase sends these parts once, and that client."""
    bench = make_bench(name, wire=wire)
    context = bench.loop.context
    client = sample_clients(context, PER_ROUND, Clock(1, ROUNDS))[0] if phase == "train" else 0
    bench.site(client).fault = in_work(phase, 1, answering(parts, client))
    return bench, client


@pytest.mark.parametrize("attack", EXACT_REPLIES)
def test_a_reply_that_cannot_be_summed_is_refused_alone(attack: str) -> None:
    """The model equals that of a simulation without this reply; later replies are accepted again.

    Client 0 that did not acknowledge the mask gets it again, coded, beside its values, and need not send it back.
    """
    name, phase, parts, reason = EXACT_REPLIES[attack]
    bench, client = attacked(name, phase, parts, exact())
    weights = deployed(bench)
    assert [reason in line["text"] for line in bench.logged("answer_refused")] == [True]
    assert weights.equal(simulated(name, {(phase, 1): [client]}))


def zeros(count: int) -> CodedValues:
    """Values that are a few bytes until they are decoded."""
    found = coded(dense(count, 0.0), Uniform(0.5), None, LAYOUT, torch.Generator())
    assert isinstance(found, CodedValues)
    return found


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({f"{i}": zeros(P) for i in range(255)}, "coordinates together"),
        ({f"{i}": zeros(P) for i in range(4)}, "part '0' was not asked for"),
        ({"w": zeros(P - 1)}, f"{P - 1} values, expected"),
        ({}, "part w is missing"),
    ],
)
def test_a_reply_with_other_parts_is_refused_before_it_is_decoded(
    parts: Parts, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, client = attacked("ssfl", "train", parts, small())
    decoded: list[int] = []
    receive = Coding.receive

    def counted(self: Coding, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        if hop.direction == "up" and hop.round == 1 and hop.phase == "train":
            decoded.append(hop.client)
        return receive(self, payload, hop, state)

    monkeypatch.setattr(Coding, "receive", counted)
    deployed(bench)
    (line,) = bench.logged("answer_refused")
    assert reason in line["text"]
    assert decoded
    assert client not in decoded


def test_an_unexpected_error_costs_one_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a fault of the server itself: the run continues, and the log has the place of the fault."""
    bench = make_bench("ssfl")
    read = ServerCoder.read
    failed: list[int] = []

    def failing(self: ServerCoder, client: int, payload: Payload) -> Payload:
        if client == 2 and not failed:
            failed.append(client)
            raise KeyError("scores")
        return read(self, client, payload)

    monkeypatch.setattr(ServerCoder, "read", failing)
    weights = deployed(bench)
    assert "KeyError: 'scores'" in bench.logged("answer_refused")[0]["text"]
    (line,) = bench.logged("reply_failed")
    assert (line["level"], line["client"], line["phase"]) == ("error", 2, "score")
    assert line["traceback"].startswith("Traceback (most recent call last):")
    assert "in failing" in line["traceback"]
    assert weights.equal(simulated("ssfl", {("score", 1): [2]}))


@pytest.mark.parametrize("wire", [exact, small])
@pytest.mark.parametrize(
    "name", ["ssfl", "ssfl_factored", "fedavg_ft", "random_clientwise", "dispfl", "sparsyfed", "local"]
)
def test_honest_replies_are_accepted(name: str, wire: Callable[[], WireStack]) -> None:
    bench = make_bench(name, wire=wire())
    bench.run(ROUNDS)
    assert not bench.logged("answer_refused")
