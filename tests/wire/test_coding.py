"""The transform that codes parts: what goes by which codec, statistics kept, feedback, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.payloads import (
    FACTORS,
    SCORES,
    DenseValues,
    MaskBits,
    MaskedValues,
    Part,
    Payload,
    SparseValues,
    Support,
    dense_values,
    pack_sparse,
)
from ssfl.core.reading import octets
from ssfl.core.rng import stream
from ssfl.wire.coding import Coding, MaskCoding, Votes
from ssfl.wire.feedback import Values
from ssfl.wire.half import Half
from ssfl.wire.holdings import State, values_at
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.message import decode, encode
from ssfl.wire.parts import NO_VERSION, CodedMask, CodedSparse, CodedValues
from ssfl.wire.stack import Hop, Received, receive, send
from ssfl.wire.uniform import Uniform
from ssfl.wire.value_codec import ValueCodec
from tests.support.refusals import refusal

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
LAYOUT = Layout.of(NET)
STATISTICS = LAYOUT.size - LAYOUT.trained_size
EXACT = Coding(Lossless(), Lossless(), masks="coded")
COARSE = Coding(Uniform(0.01), Uniform(0.5), Log(256, 8), "coded")


def theta(seed: int = 0) -> Tensor:
    """Weights, and statistics of very different sizes after them."""
    values = torch.randn(LAYOUT.size, generator=stream(seed, "theta"))
    values[-STATISTICS:] = values[-STATISTICS:].abs() * torch.logspace(-6, 3, STATISTICS)
    return values


def support(share: float = 0.4) -> Support:
    bits = torch.rand(LAYOUT.prunable_size, generator=stream(9, "mask")) < share
    return Support.of(LAYOUT.expand_mask(bits), LAYOUT)


def hop(part: Part | None = None, name: str = "w", client: int = 3) -> Hop:
    """A reply after `part` was received."""
    plain = Hop("up", client, "train", 5, 7, LAYOUT)
    if part is None:
        return plain
    return replace(plain, received=Received([Payload({name: part})], lambda payload: payload))


def crossed(coding: Coding, part: Part, where: Hop, name: str = "w") -> tuple[Part, Values]:
    """(as it travelled, as it was decoded), through real bytes."""
    sent, _ = coding.send(Payload({name: part}, 3), where, {})
    arrived = decode(encode(sent, LAYOUT), LAYOUT)
    back, _ = coding.receive(arrived, where, {})
    found = back.parts[name]
    assert isinstance(found, (DenseValues, MaskedValues, SparseValues))
    return sent.parts[name], found


FORMS: Mapping[str, Callable[[Tensor], Values]] = {
    "dense": lambda values: DenseValues(values),
    "masked": lambda values: support().pack(values),
    "sparse": lambda values: pack_sparse(values, support().mask),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("referred", [False, True])
def test_exact_codecs_give_every_part_back(form: str, referred: bool) -> None:
    part, before = FORMS[form](theta(1)), FORMS[form](theta(0))
    sent, found = crossed(EXACT, part, hop(before if referred else None))
    assert isinstance(sent, CodedSparse if form == "sparse" else CodedValues)
    assert (sent.reference == NO_VERSION) != referred
    assert type(found) is type(part)
    assert found.values.equal(part.values)
    if isinstance(part, SparseValues):
        assert isinstance(found, SparseValues)
        assert found.bits.equal(part.bits)
    if isinstance(part, MaskedValues):
        assert isinstance(found, MaskedValues)
        assert found.support == part.support


@pytest.mark.parametrize("form", FORMS)
def test_running_statistics_travel_as_they_are(form: str) -> None:
    """The smallest variance is a millionth of the largest: a step of half their rms would make it 0."""
    part, before = FORMS[form](theta(1)), FORMS[form](theta(0))
    _, found = crossed(COARSE, part, hop(before))
    assert found.values[-STATISTICS:].equal(part.values[-STATISTICS:])
    assert not found.values.equal(part.values)


@pytest.mark.parametrize("form", FORMS)
def test_each_tensor_has_a_step_of_its_own(form: str) -> None:
    before = theta(0)
    after = before.clone()
    sizes = torch.tensor(LAYOUT.sizes)
    scale = torch.repeat_interleave(torch.logspace(-5, 1, len(sizes)), sizes)
    change = torch.randn(LAYOUT.size, generator=stream(4, "change")) * scale
    after[: LAYOUT.trained_size] += change[: LAYOUT.trained_size]
    part = FORMS[form](after)
    _, found = crossed(COARSE, part, hop(FORMS[form](before)))
    exact = dense(part)[: LAYOUT.trained_size].double()
    error = dense(found)[: LAYOUT.trained_size].double() - exact
    at = 0
    for size, is_trained in zip(LAYOUT.sizes, LAYOUT.trained, strict=True):
        if is_trained:
            own, moved = error[at : at + size], change[at : at + size]
            # Half a step of 0.5 rms, and float32's rounding of values near 1.
            assert float(own.abs().max()) <= 0.25 * float(moved.abs().max()) + 1e-6
        at += size


def dense(part: Part) -> Tensor:
    return support().unpack(part) if isinstance(part, MaskedValues) else dense_values(part)


def test_values_on_another_mask_stand_for_themselves() -> None:
    """A difference needs values on the same coordinates; what does not fit goes by the codec of whole values."""
    other = Support.of(LAYOUT.expand_mask(torch.ones(LAYOUT.prunable_size, dtype=torch.bool)), LAYOUT)
    sent, _ = crossed(COARSE, support().pack(theta(1)), hop(other.pack(theta(0))))
    assert isinstance(sent, CodedValues)
    assert sent.reference == NO_VERSION
    assert values_at(support().pack(theta()), DenseValues(theta())) is None
    assert values_at(DenseValues(theta()), support().pack(theta())) is None
    assert values_at(DenseValues(theta()), MaskBits(support().mask)) is None


def test_sparse_values_refer_to_a_dense_model() -> None:
    """SparsyFed's client gets the whole model and sends its own largest weights."""
    part = pack_sparse(theta(0) + 0.01, support().mask)
    for known in (DenseValues(theta(0)), pack_sparse(theta(0), torch.ones(LAYOUT.size, dtype=torch.bool))):
        sent, found = crossed(EXACT, part, hop(known))
        assert isinstance(sent, CodedSparse)
        assert sent.reference == known.version
        assert found.values.equal(part.values)
        reference = values_at(part, known)
        assert reference is not None
        assert reference.equal(theta(0)[support().mask])


def test_scores_have_a_codec_of_their_own() -> None:
    scores = DenseValues(torch.rand(LAYOUT.prunable_size, generator=stream(1, "s")))
    sent, found = crossed(COARSE, scores, hop(), SCORES)
    assert isinstance(sent, CodedValues)
    assert sent.codec == Log.code
    assert float((found.values / scores.values).log2().abs().max()) <= 1 / 16 + 1e-6
    plain, same = crossed(Coding(Uniform()), scores, hop(), SCORES)
    assert isinstance(plain, DenseValues)
    assert same.values.equal(scores.values)


def test_negative_scores_have_no_logarithm() -> None:
    scores = DenseValues(torch.randn(LAYOUT.prunable_size, generator=stream(1, "s")))
    sent, found = crossed(COARSE, scores, hop(), SCORES)
    assert isinstance(sent, CodedValues)
    assert sent.codec == Half.code
    torch.testing.assert_close(found.values, scores.values, rtol=2**-8, atol=0)


def test_votes_are_the_best_share() -> None:
    scores = torch.rand(LAYOUT.prunable_size, generator=stream(1, "s"))
    _, found = crossed(Coding(scores=Votes(0.25), masks="coded"), DenseValues(scores), hop(), SCORES)
    keep = int(LAYOUT.prunable_size * 0.25)
    expected = torch.zeros(LAYOUT.prunable_size)
    expected[scores.topk(keep).indices] = 1.0
    assert isinstance(found, DenseValues)
    assert found.values.equal(expected)


def test_factors_are_not_coded() -> None:
    part = DenseValues(torch.randn(20))
    sent, _ = crossed(COARSE, part, hop(), FACTORS)
    assert sent is part


def test_masks_take_their_smallest_form() -> None:
    bits = torch.zeros(LAYOUT.prunable_size, dtype=torch.bool)
    payload = Payload({"mask": MaskBits(bits)})
    sent, _ = COARSE.send(payload, hop(), {})
    assert isinstance(sent.parts["mask"], CodedMask)
    found = COARSE.receive(sent, hop(), {})[0].parts["mask"]
    assert isinstance(found, MaskBits)
    assert found.bits.equal(bits)
    assert isinstance(Coding().send(payload, hop(), {})[0].parts["mask"], MaskBits)


ROUNDS = 30


@pytest.mark.parametrize("codec", [Uniform(2.0), Int8(4, "nearest"), Uniform(1.0, "stochastic")], ids=repr)
def test_error_feedback_telescopes(codec: Uniform | Int8) -> None:
    """What was received over all rounds, plus the last residual, is what was to be sent: sum(d_t) exactly.

    Karimireddy et al. 2019: the memory e_T = sum(d_t) - sum(decoded_t). Without feedback the errors add up freely.
    """
    coding = Coding(Int8(), codec, feedback=True)
    state: State = {}
    wanted = torch.zeros(LAYOUT.trained_size, dtype=torch.float64)
    arrived = torch.zeros_like(wanted)
    for round_ in range(ROUNDS):
        before, after = theta(round_), theta(round_) + 0.1 * theta(100 + round_)
        where = replace(hop(DenseValues(before)), round=round_)
        sent, state = send([coding], Payload({"w": DenseValues(after)}, 3), where, state)
        back, _ = receive([coding], sent, where, {})
        part = back.parts["w"]
        assert isinstance(part, DenseValues)
        wanted += (after - before)[: LAYOUT.trained_size].double()
        arrived += (part.values - before)[: LAYOUT.trained_size].double()
        (residual,) = state.values()
        # The values lie near 1, so every sum in float32 rounds by up to 2^-22 or so.
        torch.testing.assert_close(
            arrived + residual[: LAYOUT.trained_size].double(), wanted, rtol=0, atol=2e-6 * (round_ + 1)
        )
    assert list(state) == ["wire/up/coding/residual/w"]


def test_feedback_of_another_mask_is_forgotten() -> None:
    coding = Coding(Int8(), Int8(), feedback=True)
    state: State = {}
    for share in (0.4, 0.9):
        before, after = (support(share).pack(theta(seed)) for seed in (0, 1))
        _, state = send([coding], Payload({"w": after}, 3), hop(before), state)
        assert len(state["wire/up/coding/residual/w"]) == len(after.values)


def test_feedback_of_another_mask_of_the_same_size_is_forgotten() -> None:
    coding = Coding(Int8(), Uniform(2.0), feedback=True)
    state: State = {}
    for bits in (support().mask, support().mask.flip(0)):
        own = Support.of(bits, LAYOUT)
        plain = coding.send(Payload({"w": own.pack(theta(1))}, 3), hop(own.pack(theta(0))), {})[0]
        sent, state = coding.send(Payload({"w": own.pack(theta(1))}, 3), hop(own.pack(theta(0))), state)
        assert encode(sent) == encode(plain)
    fed, _ = coding.send(Payload({"w": own.pack(theta(1))}, 3), hop(own.pack(theta(0))), state)
    assert encode(fed) != encode(plain)


def test_feedback_follows_the_coordinates_of_changing_masks() -> None:
    """SparsyFed sends as many values in every round, at other places: at each coordinate, what arrived plus the last
    residual is what was to be sent there, summed over the rounds that sent it."""
    coding = Coding(Int8(), Uniform(2.0), feedback=True)
    state: State = {}
    wanted, arrived = (
        torch.zeros(LAYOUT.size, dtype=torch.float64),
        torch.zeros(LAYOUT.size, dtype=torch.float64),
    )
    for round_ in range(12):
        before, after = theta(round_), theta(round_) + 0.1 * theta(100 + round_)
        bits = torch.zeros(LAYOUT.size, dtype=torch.bool)
        bits[torch.randperm(LAYOUT.size, generator=stream(round_, "places"))[:90]] = True
        where = replace(hop(DenseValues(before)), round=round_)
        sent, state = send([coding], Payload({"w": pack_sparse(after, bits)}, 3), where, state)
        part = receive([coding], sent, where, {})[0].parts["w"]
        wanted[bits] += (after - before)[bits].double()
        arrived[bits] += (dense_values(part) - before)[bits].double()
    trained = LAYOUT.trained_size
    residual = state["wire/up/coding/residual/w"].double()
    assert int(residual.count_nonzero()) > 90
    torch.testing.assert_close((arrived + residual)[:trained], wanted[:trained], rtol=0, atol=1e-4)


CODECS: tuple[ValueCodec, ...] = (
    Lossless(),
    Half(),
    Half(torch.float16, "zstd"),
    Int8(16, "nearest"),
    Int8(256, "nearest", of="values"),
    Uniform(0.05),
    Uniform(0.05, of="values"),
)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_values_of_every_type_on_empty_and_full_masks(
    codec: ValueCodec, dtype: torch.dtype, share: float, form: str
) -> None:
    """Through real bytes, with and without a reference; of nothing pruned, of everything that can be pruned."""
    own = support(share)
    bits = own.mask.clone()
    if share == 0.0 and form == "sparse":
        bits[:] = False  # not one value
    before, after = theta(0)[: LAYOUT.size].to(dtype), (theta(0) + 0.5 * theta(1)).to(dtype)
    after[-STATISTICS:] = before[-STATISTICS:]
    parts = [own.pack(v) if form == "masked" else pack_sparse(v, bits) for v in (before, after)]
    known = parts[0] if form == "masked" else DenseValues(before)
    coding = Coding(codec, codec, masks="coded")
    exact = parts[1].values
    # Half of 0.05 root mean squares, which are below 2 in every tensor, or half of a 126th of the largest value.
    assert float(exact[:-STATISTICS].abs().max() if len(exact) > STATISTICS else 0.0) < 5
    limit = 0.0 if codec.exact else 0.05 + 4 * torch.finfo(dtype).eps * (1 + exact.double().abs())
    for where in (hop(), hop(known)):
        _, found = crossed(coding, parts[1], where)
        assert found.values.dtype == dtype
        assert found.values.shape == exact.shape
        assert bool(((found.values.double() - exact.double()).abs() <= limit).all())
        assert found.values[-STATISTICS:].equal(exact[-STATISTICS:])


@pytest.mark.parametrize(
    ("codec", "metadata"),
    [
        (Uniform(0.5), lambda count: 3 + 8 * sum(LAYOUT.trained)),
        (Int8(16), lambda count: 5 + 2 * -(-count // 16)),
        (Half(), lambda count: 2),
        (Lossless(), lambda count: 0),
    ],
)
@pytest.mark.parametrize("masks", ["bitmap", "coded"])
def test_steps_and_scales_of_sparse_values_are_metadata(
    codec: ValueCodec, metadata: Callable[[int], int], masks: MaskCoding
) -> None:
    """Against docs/wire-format.md, at the sender and at a receiver that does not know the number of values."""
    part = pack_sparse(theta(), support(0.05).mask)
    sent = Coding(codec, masks=masks).send(Payload({"w": part}, 3), hop(), {})[0]
    for payload in (sent, decode(encode(sent, LAYOUT), LAYOUT)):
        found = payload.parts["w"]
        assert isinstance(found, CodedSparse)
        heads = 8 + 1 + 8 + found.mask.nbytes + 4
        assert found.metadata_nbytes == heads + metadata(len(part.values) - STATISTICS)


def test_draws_are_named_by_client_and_round() -> None:
    coding = Coding(Int8(rounding="stochastic"))
    part = Payload({"w": DenseValues(theta())}, 3)
    first, again = (encode(coding.send(part, hop(), {})[0]) for _ in range(2))
    assert first == again
    for other in (
        hop(client=4),
        replace(hop(), round=6),
        replace(hop(), phase="warmup"),
        replace(hop(), seed=8),
    ):
        assert encode(coding.send(part, other, {})[0]) != first


def refused(part: Part, known: Part | None = None, name: str = "w") -> str:
    return refusal(lambda: COARSE.receive(Payload({name: part}, 3), hop(known), {}))


def test_differences_to_what_this_side_does_not_hold_are_refused() -> None:
    before, after = support().pack(theta(0)), support().pack(theta(1))
    sent = COARSE.send(Payload({"w": after}, 3), hop(before), {})[0].parts["w"]
    assert isinstance(sent, CodedValues)
    assert "this side holds nothing" in refused(sent)
    assert "this side holds version" in refused(sent, support().pack(theta(2)))
    assert "of another mask or length" in refused(replace(sent, support=b"12345678"), before)
    assert "of another mask or length" in refused(replace(sent, count=sent.count - 1), before)
    assert "tail of" in refused(replace(sent, count=1, reference=NO_VERSION))
    sparse = pack_sparse(theta(1), support().mask)
    own = COARSE.send(Payload({"w": sparse}, 3), hop(DenseValues(theta(0))), {})[0].parts["w"]
    assert isinstance(own, CodedSparse)
    short = DenseValues(torch.zeros(5))
    assert "refer to 5" in refused(replace(own, reference=short.version), short)


def test_parts_of_impossible_lengths_are_refused_before_they_are_inflated() -> None:
    empty = torch.empty(0)
    huge = CodedValues(4, 2**31 - 1, NO_VERSION, NO_VERSION, empty, octets(b"\x01\x00\x00"))
    assert "the model has" in refused(huge)
    assert "the model has" in refused(CodedMask(1, 2**31 - 1, octets(b"x")), name="mask")
    assert "the model has" in refused(CodedMask(1, 17, octets(b"x")), name="mask")
