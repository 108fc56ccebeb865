"""The stack of transforms: composition by hand, state, references, one encoding a broadcast; noise and secure sums."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import pytest
import torch
from torch import Tensor

from ssfl.core.layout import Layout
from ssfl.core.payloads import SERVER, DenseValues, MaskBits, Payload
from ssfl.core.reading import Reader, WireError
from ssfl.core.rng import stream
from ssfl.wire.coding import Coding
from ssfl.wire.holdings import State
from ssfl.wire.lossless import Lossless
from ssfl.wire.message import decode, encode
from ssfl.wire.stack import (
    NOTHING_RECEIVED,
    Hop,
    Received,
    Transform,
    WireStack,
    receive,
    send,
    task_state,
    wire_state,
)
from ssfl.wire.uniform import Uniform
from ssfl.wire.value_codec import ValueCodec, Vector

LAYOUT = Layout(("a.weight", "a.bias"), ((4, 3), (4,)), (True, False), (True, True))
WHERE = ("train", 3)


@final
@dataclass(frozen=True)
class Scaled(Transform):
    """Values times a factor on the way."""

    factor: float
    seen: list[str] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return f"scaled {self.factor}"

    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        self.seen.append(f"send {self.factor}")
        return _mapped(payload, lambda v: v * self.factor), state

    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        self.seen.append(f"receive {self.factor}")
        return _mapped(payload, lambda v: v / self.factor), state


@final
@dataclass(frozen=True)
class Whole(ValueCodec):
    """Values rounded to whole numbers, in the uniform codec's form: a step of exactly 1."""

    code = Uniform.code

    def encode(self, vector: Vector, draws: torch.Generator) -> bytes:
        rms = float(torch.linalg.vector_norm(vector.delta)) / len(vector.values) ** 0.5
        return Uniform(1 / rms).encode(Vector(vector.values, None, [len(vector.values)]), draws)

    @staticmethod
    def decode(reader: Reader, count: int, dtype: torch.dtype, reference: Tensor | None) -> Tensor:
        return Uniform.decode(reader, count, dtype, reference)

    @staticmethod
    def metadata_nbytes(reader: Reader, count: Callable[[], int]) -> int:
        return Uniform.metadata_nbytes(reader, count)


@final
@dataclass(frozen=True)
class Counted(Transform):
    """Numbers the messages of each end."""

    @property
    def name(self) -> str:
        return "counted"

    @property
    def per_client(self) -> bool:
        return True

    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        return payload, {"sent": state.get("sent", torch.tensor(0)) + 1}

    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        return payload, {"received": state.get("received", torch.tensor(0)) + 1}


@final
@dataclass(frozen=True)
class Noised(Transform):
    """Local differential privacy: clip a reply to a norm and add Gaussian noise; nothing to undo."""

    norm: float
    sigma: float

    @property
    def name(self) -> str:
        return "noised"

    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        def noised(values: Tensor) -> Tensor:
            clipped = values * min(1.0, self.norm / float(values.norm()))
            return clipped + self.sigma * torch.randn(values.shape, generator=hop.draws("noise"))

        return _mapped(payload, noised), state

    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        return payload, state


@final
@dataclass(frozen=True)
class PairwiseMasked(Transform):
    """Secure aggregation in outline (Bonawitz et al. 2017): every pair of clients adds a number to one and takes it
    from the other, so that single replies say nothing and the sum of all says what it should."""

    clients: Sequence[int]

    @property
    def name(self) -> str:
        return "pairwise masked"

    def send(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        def masked(values: Tensor) -> Tensor:
            for other in self.clients:
                if other != hop.client:
                    low, high = sorted((other, hop.client))
                    draw = torch.randn(
                        values.shape, generator=stream(hop.seed, "pair", low, high), dtype=values.dtype
                    )
                    values = values + (draw if hop.client == low else -draw) * 100
            return values

        return _mapped(payload, masked), state

    def receive(self, payload: Payload, hop: Hop, state: State) -> tuple[Payload, State]:
        return payload, state


def _mapped(payload: Payload, change) -> Payload:  # type: ignore[no-untyped-def]
    parts = {
        name: DenseValues(change(part.values)) if isinstance(part, DenseValues) else part
        for name, part in payload.parts.items()
    }
    return replace(payload, parts=parts)


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Payload:
    return Payload({"w": DenseValues(torch.randn(16, generator=stream(seed, "model"), dtype=dtype))})


def values(payload: Payload) -> Tensor:
    part = payload.parts["w"]
    assert isinstance(part, DenseValues)
    return part.values


def hop(received: Received | None = None) -> Hop:
    plain = Hop("up", 2, "train", 3, 7, LAYOUT)
    return plain if received is None else replace(plain, received=received)


def test_the_stack_is_the_transforms_one_after_the_other() -> None:
    log: list[str] = []
    two, three = Scaled(2.0, log), Scaled(3.0, log)
    payload = model()
    sent, _ = send((two, three), payload, hop(), {})
    assert values(sent).equal(values(payload) * 2.0 * 3.0)
    back, _ = receive((two, three), sent, hop(), {})
    assert values(back).equal(values(sent) / 3.0 / 2.0)
    assert log == ["send 2.0", "send 3.0", "receive 3.0", "receive 2.0"]


def test_each_transform_has_a_state_of_its_own_at_each_end() -> None:
    stack = (Counted(), Scaled(2.0))
    state: State = {"mask": torch.ones(1)}
    for _ in range(3):
        _, state = send(stack, model(), hop(), state)
    _, state = receive(stack, model(), hop(), state)
    assert {name: t.tolist() for name, t in state.items()} == {"mask": [1.0], "wire/up/counted/received": 1}
    assert list(task_state(state)) == ["mask"]
    assert list(wire_state(state)) == ["wire/up/counted/received"]
    untouched: State = {"mask": torch.ones(1)}
    assert task_state(untouched) is untouched


def test_nothing_changes_without_transforms() -> None:
    wire = WireStack(LAYOUT, 7)
    payload, state = model(), {"x": torch.ones(1)}
    assert wire.is_plain
    assert wire.send_to(payload, 1, *WHERE) is payload
    opened = wire.open_inbox([payload], state, 1, *WHERE)
    assert opened.payloads[0] is payload
    assert opened.state is state
    reply, kept = wire.send_reply(payload, opened.received, state, 1, *WHERE)
    assert reply is payload
    assert kept is state
    assert wire.receive_reply(payload, opened.received, 1, *WHERE) is payload


def test_a_broadcast_is_decoded_once() -> None:
    log: list[str] = []
    wire = WireStack(LAYOUT, 7, down=(Scaled(2.0, log),))
    sent = wire.send_to(model(), SERVER, *WHERE)
    opened = [wire.open_inbox([sent], {}, client, *WHERE).payloads[0] for client in range(4)]
    assert log == ["send 2.0", "receive 2.0"]
    assert all(payload is opened[0] for payload in opened)
    assert wire.encodes_once


def test_transforms_that_differ_from_client_to_client_see_each_of_them() -> None:
    wire = WireStack(LAYOUT, 7, down=(Counted(),))
    assert not wire.encodes_once
    payload = model()
    state: State = {}
    for count in (1, 2):
        state = wire.open_inbox([payload], state, 1, *WHERE).state
        assert int(state["wire/down/counted/received"]) == count


def test_other_clients_messages_pass_the_uplinks_transforms() -> None:
    down, up = Scaled(2.0), Scaled(5.0)
    wire = WireStack(LAYOUT, 7, (down,), (up,))
    published, _ = wire.send_reply(replace(model(1), sender=4), NOTHING_RECEIVED, {}, 4, *WHERE)
    inbox = [wire.send_to(model(0), 1, *WHERE), published]
    first, second = wire.open_inbox(inbox, {}, 1, *WHERE).payloads
    torch.testing.assert_close(values(first), values(model(0)))
    torch.testing.assert_close(values(second), values(model(1)))


def test_both_ends_refer_to_what_the_client_received() -> None:
    """The reply names the very bytes that the client got; it decodes from them and from no others."""
    wire = WireStack(LAYOUT, 7, down=(Coding(Lossless()),), up=(Coding(delta=Lossless()),))
    inbox = [wire.send_to(model(0), SERVER, *WHERE)]
    trained = model(1)
    received = wire.open_inbox(inbox, {}, 1, *WHERE).received
    reply, _ = wire.send_reply(replace(trained, sender=1), received, {}, 1, *WHERE)
    crossed = decode(encode(reply, LAYOUT), LAYOUT)
    known = wire.received_by(inbox, 1, *WHERE)
    assert values(wire.receive_reply(crossed, known, 1, *WHERE)).equal(values(trained))
    elsewhere = [wire.send_to(model(2), SERVER, *WHERE)]
    for other in (elsewhere, []):
        with pytest.raises(WireError, match="this side holds"):
            wire.receive_reply(crossed, wire.received_by(other, 1, *WHERE), 1, *WHERE)


def one_round(wire: WireStack, now: Payload, change: float) -> tuple[Payload, Payload]:
    """The model as it arrives at a client that adds `change`, and the reply as it arrives at the server."""
    sent = wire.send_to(now, SERVER, *WHERE)
    opened = wire.open_inbox([sent], {}, 1, *WHERE)
    trained = _mapped(opened.payloads[0], lambda v: v + change)
    reply, _ = wire.send_reply(replace(trained, sender=1), opened.received, {}, 1, *WHERE)
    return opened.payloads[0], wire.receive_reply(reply, wire.received_by([sent], 1, *WHERE), 1, *WHERE)


def test_replies_are_changes_of_what_the_server_meant() -> None:
    """The server rounds what it sends to whole numbers; a client adds 0.125. The server's own values gain 0.125."""
    wire = WireStack(LAYOUT, 7, down=(Coding(Whole()),), up=(Coding(delta=Lossless()),))
    arrived, found = one_round(wire, model(0), 0.125)
    assert values(arrived).equal(values(model(0)).round())
    torch.testing.assert_close(values(found), values(model(0)) + 0.125, rtol=0, atol=3e-7)


def test_changes_far_below_a_downlinks_step_add_up() -> None:
    """200 rounds in which every client adds a hundredth of the step: two steps in all, and none is lost."""
    wire = WireStack(LAYOUT, 7, down=(Coding(Whole()),), up=(Coding(delta=Lossless()),))
    model_now = model(0)
    for _ in range(200):
        wire.forget()
        model_now = replace(one_round(wire, model_now, 0.01)[1], sender=SERVER)
    torch.testing.assert_close(values(model_now), values(model(0)) + 2.0, rtol=0, atol=1e-4)


def test_a_mask_beside_the_values_is_no_reference() -> None:
    mask = Payload({"mask": MaskBits(torch.ones(12, dtype=torch.bool)), "w": model().parts["w"]})
    known = Received([mask], lambda payload: payload).known("w")
    assert known is not None
    assert known.part is mask.parts["w"]
    assert Received([mask], lambda payload: payload).known("mask") is None
    assert Received([replace(mask, sender=3)], lambda payload: payload).known("w") is None


def test_a_stack_survives_pickling() -> None:
    wire = WireStack(LAYOUT, 7, (Coding(Lossless()),), (Coding(delta=Lossless()),))
    wire.open_inbox([wire.send_to(model(), SERVER, *WHERE)], {}, 1, *WHERE)
    again = pickle.loads(pickle.dumps(wire))
    assert (again.down, again.up, again.seed) == (wire.down, wire.up, wire.seed)


def test_noise_is_a_member() -> None:
    """Draws are named by client and round: the same again, others elsewhere; the sum of many is near the sum."""
    wire = WireStack(LAYOUT, 7, up=(Noised(norm=1.0, sigma=0.5), Coding(Lossless())))
    sent = [
        wire.send_reply(replace(model(1), sender=c), NOTHING_RECEIVED, {}, c, *WHERE)[0] for c in range(400)
    ]
    again, _ = wire.send_reply(replace(model(1), sender=5), NOTHING_RECEIVED, {}, 5, *WHERE)
    assert encode(again) == encode(sent[5])
    found = torch.stack([values(wire.receive_reply(p, NOTHING_RECEIVED, p.sender, *WHERE)) for p in sent])
    clipped = values(model(1)) / values(model(1)).norm()
    error = (found.mean(0) - clipped).norm() / (0.5 * 16**0.5 / 400**0.5)
    assert float(error) == pytest.approx(1, abs=0.5)
    assert float(found.std(0).mean()) == pytest.approx(0.5, rel=0.1)


def test_masks_that_cancel_in_the_sum_are_a_member() -> None:
    clients = range(5)
    wire = WireStack(LAYOUT, 7, up=(PairwiseMasked(clients),))
    plain = [replace(model(c, torch.float64), sender=c) for c in clients]
    sent = [wire.send_reply(p, NOTHING_RECEIVED, {}, p.sender, *WHERE)[0] for p in plain]
    for one, hidden in zip(plain, sent, strict=True):
        assert float((values(one) - values(hidden)).norm()) > 100
    opened = [values(wire.receive_reply(p, NOTHING_RECEIVED, p.sender, *WHERE)) for p in sent]
    torch.testing.assert_close(sum(opened), sum(map(values, plain)), rtol=0, atol=1e-11)
