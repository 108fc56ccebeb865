"""DisPFL's notice board costs no memory: what clients published is named where they remember it, to the bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import Instruction
from ssfl.algorithms.dispfl import DisPFL, FirstPost
from ssfl.core.codec import decode, encode
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload, SparseValues, nbytes, pack_sparse
from ssfl.engine.checkpoint import Checkpoints
from ssfl.engine.client_store import ClientStore, Entry, whole
from ssfl.engine.driver import Progress
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.jobs import Job, Outcome
from ssfl.engine.local import ClientRunner
from ssfl.engine.remembered import Remembered, bind, without_tensors
from tests.engine.support import Rig, float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 0.99))


def part(seed: int = 0, size: int = 20) -> SparseValues:
    generator = torch.Generator().manual_seed(seed)
    return pack_sparse(torch.randn(size, generator=generator), torch.rand(size, generator=generator) < 0.5)


# ── a payload by name ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("copied", [False, True])
def test_what_the_client_remembers_is_named(copied: bool) -> None:
    """`copied`: as from a worker process, where reply and state arrive as tensors of their own."""
    sent = part()
    state = {
        "mask": part(1).bits,
        "values": sent.values.clone() if copied else sent.values,
        "bits": sent.bits,
    }
    told = without_tensors(Payload({"w": sent}, 3), state, Entry(state))
    assert isinstance(told.parts, Remembered)
    assert told.sender == 3
    assert dict(told.parts.names) == {"w": ("values", "bits")}
    found = told.parts["w"]
    assert isinstance(found, SparseValues)
    assert found.values is state["values"]
    assert found.bits is state["bits"]
    assert nbytes(told) == nbytes(Payload({"w": sent}, 3)) == len(encode(told))
    assert decode(encode(told)).parts.keys() == {"w"}


def test_what_it_does_not_remember_to_the_bit_is_held() -> None:
    sent, zeros = part(), torch.zeros(2)
    for payload, state in (
        (Payload({"w": sent}), {"values": sent.values + 1, "bits": sent.bits}),
        (Payload({"w": sent}), {"values": sent.values}),
        (
            Payload({"w": SparseValues(zeros, sent.bits)}),
            {"values": -zeros, "bits": sent.bits},
        ),
        (Payload({"w": DenseValues(sent.values)}), {"values": sent.values}),
        (Payload({}), {"values": sent.values}),
    ):
        assert without_tensors(payload, state, Entry(state)) is payload


def test_an_old_version_stays_what_it_was_wherever_it_lies(tmp_path: Path) -> None:
    store, old, new = ClientStore(tmp_path, 0), part(1), part(2)
    store.put(4, {"values": old.values, "bits": old.bits})
    told = without_tensors(Payload({"w": old}, 4), {"values": old.values, "bits": old.bits}, store.entry(4))
    store.put(4, {"values": new.values, "bits": new.bits})
    found = told.parts["w"]
    assert isinstance(found, SparseValues)
    assert found.values.equal(old.values)
    assert found.bits.equal(old.bits)


def test_names_out_of_a_checkpoint_are_bound_to_its_states() -> None:
    store, sent = ClientStore(), part()
    store.put(4, {"values": sent.values, "bits": sent.bits})
    unbound = Remembered(4, {"w": ("values", "bits")})
    assert not unbound.bound
    bind(Instruction(1, (Payload(unbound, 4), Payload({"w": sent}, 5))), store)
    found = unbound["w"]
    assert isinstance(found, SparseValues)
    assert found.values is sent.values


def test_a_first_post_is_the_model_under_its_mask_at_a_bit_a_coordinate() -> None:
    theta = torch.randn(37, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(37, generator=torch.Generator().manual_seed(1)) < 0.3
    post = FirstPost.of(theta, mask)
    assert post["w"].values.equal(theta[mask])
    assert post["w"].bits.equal(mask)
    assert list(post) == ["w"]
    assert post.packed.nbytes == 5
    with pytest.raises(KeyError):
        post["v"]


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Counting:
    """The sequential executor; counts the bytes of all clients' tensors that are still alive."""

    def __init__(self, runner: ClientRunner) -> None:
        self.inner = SequentialExecutor(runner)
        self.seen: dict[int, weakref.ref[Tensor]] = {}
        self.most_bytes = 0

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for outcome in self.inner.run(jobs):
            for tensor in outcome.state.values():
                self.seen[id(tensor)] = weakref.ref(tensor)
            yield outcome
            del outcome, tensor
            self.most_bytes = max(self.most_bytes, self.alive_bytes())

    def alive_bytes(self) -> int:
        return sum(t.nbytes for t in (ref() for ref in self.seen.values()) if t is not None)

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.predict(theta)

    def close(self) -> None: ...


def counted_run(clients: int, store: ClientStore) -> tuple[Rig, Counting, Progress]:
    algorithm, data, module = DisPFL(FIT, 0.5, neighbour_count=3), float_data([8] * clients), tiny_net()
    counting = Counting(make_runner(data, module, algorithm.tasks))
    rig = make_rig(algorithm, data, module, executor=counting)
    rig.recorder.inner.store = store
    rig.loop.exchange = rig.recorder.inner  # a recorder would keep what passes
    gc.collect()
    return rig, counting, rig.loop.run(rig.loop.start(rig.theta, 3))


def state_bytes(rig: Rig) -> int:
    """Values (float64) at half density and two masks, at most."""
    return rig.theta.numel() * (8 + 2)


def test_memory_does_not_grow_with_the_clients_whose_models_are_on_the_board(tmp_path: Path) -> None:
    most = {}
    for clients in (6, 24):
        budget = 3 * 3000
        rig, counting, ended = counted_run(clients, ClientStore(tmp_path / str(clients), budget))
        most[clients] = counting.most_bytes
        # the store, what the last snapshot still holds of it, and the client in work
        assert counting.most_bytes <= 2 * budget + 2 * state_bytes(rig)
        assert all(isinstance(p.parts, Remembered) for p in ended.state.published.values())
    _, unbounded, _ = counted_run(24, ClientStore())
    assert unbounded.most_bytes > 1.5 * most[24]


def test_a_checkpoint_does_not_hold_what_lies_on_disk_and_the_model_is_the_same(tmp_path: Path) -> None:
    _, _, plain = counted_run(24, ClientStore())
    rig, _, ended = counted_run(24, ClientStore(tmp_path / "clients", 0))
    kept, wanted = whole(ended.client_states), whole(plain.client_states)
    for client in wanted:
        assert all(kept[client][n].equal(t) for n, t in wanted[client].items())
    path = Checkpoints(tmp_path / "checkpoints").save(ended)
    assert path.with_suffix(".safetensors").stat().st_size < state_bytes(rig)
