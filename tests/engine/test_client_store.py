"""Client states beyond the memory budget: in files, read back equal, named by checkpoints, removed when unneeded."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssfl.algorithms.base import (
    Algorithm,
    ClientReply,
    ClientReport,
    ClientState,
    Clock,
    Instruction,
    Probe,
    RoundPlan,
)
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload
from ssfl.core.saliency import CRITERIA
from ssfl.engine.checkpoint import Checkpoints
from ssfl.engine.client_store import ClientStore, StoredState, StoreError, whole
from ssfl.engine.driver import Progress
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.jobs import Job, Outcome
from ssfl.engine.ledger import Ledger
from ssfl.engine.simulator import Simulator
from tests.engine.support import Rig, float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 0.99))
KB = 1000


def state(seed: int, floats: int = 250) -> ClientState:
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(floats, generator=generator), "bits": torch.rand(7, generator=generator) < 0.5}


def equal(a: ClientState, b: ClientState) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


# ── put and get ──────────────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40), st.integers(0, 5))
def test_like_a_dictionary_whatever_the_budget(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], states_in_memory: int
) -> None:
    """Value 0 is a tensor that all who put it share; a dictionary is the oracle."""
    folder = tmp_path_factory.mktemp("store")
    store, oracle = ClientStore(folder, states_in_memory * KB), dict[int, ClientState]()
    common = {"w": torch.arange(250.0), "bits": torch.ones(7, dtype=torch.bool)}
    snapshots: list[tuple[Any, dict[int, ClientState]]] = []
    for client, value in steps:
        new = common if value == 0 else state(value)
        store.put(client, new)
        oracle[client] = new
        snapshots.append((store.snapshot(), dict(oracle)))
        assert all(equal(store.get(c), s) for c, s in oracle.items())
        assert equal(store.get(99), {})
    for snapshot, then in snapshots:  # nothing was saved, so no file was removed
        assert all(equal(whole(snapshot)[c], s) for c, s in then.items())
        assert list(snapshot) == sorted(then)


def test_the_budget_holds_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 2500)
    for client in range(2):
        store.put(client, state(client))  # 1007 bytes each
    assert files(tmp_path) == set()
    store.get(0)
    store.put(2, state(2))
    assert store.used_bytes == 2014
    assert files(tmp_path) == {"1-1.safetensors"}


def test_without_a_folder_nothing_leaves_memory() -> None:
    store = ClientStore(None, 0)
    kept = state(1)
    store.put(1, kept)
    assert store.get(1) is kept


def test_a_shared_tensor_is_held_once_and_not_written(tmp_path: Path) -> None:
    mask, views = torch.ones(4 * KB, dtype=torch.bool), torch.randn(1000)
    store = ClientStore(tmp_path, 6 * KB)
    for client in range(50):
        store.put(client, {"mask": mask, "w": torch.full((100,), float(client))})
    assert store.used_bytes <= 6 * KB
    written = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert written < 50 * 600  # 400 bytes of values and a header each; the mask alone would be 4 KB
    read = store.get(0)
    assert read["mask"] is mask
    assert read["w"].tolist() == [0.0] * 100
    store.put(
        60, {"a": views[:10], "b": views[5:]}
    )  # safetensors refuses views of one another: they are copied
    for client in range(50):
        store.put(client, state(client, 1000))
    assert torch.equal(store.get(60)["b"], views[5:])
    assert store.used_bytes <= 6 * KB + 4 * KB


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────
def progress(store: ClientStore) -> Progress:
    return Progress(torch.zeros(1), Clock(1, 9), None, Ledger(), store.snapshot())


def save(store: ClientStore, checkpoints: Checkpoints) -> Path:
    told = progress(store)
    store.flush()
    path = checkpoints.save(told)
    store.keep(told.client_states)
    return path


def test_a_checkpoint_names_files_and_a_moved_folder_goes_on(tmp_path: Path) -> None:
    run, store = tmp_path / "run", ClientStore(tmp_path / "run" / "clients", 2500)
    for client in range(30):
        store.put(client, state(client))
    path = save(store, Checkpoints(run / "checkpoints"))
    assert path.with_suffix(".safetensors").stat().st_size < 4 * KB  # two states of thirty
    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    read = Checkpoints(run / "checkpoints").latest(())
    assert read is not None
    again = ClientStore(run / "clients", 2500)
    again.restore(read[0].client_states)
    assert all(equal(again.get(c), state(c)) for c in range(30))
    assert again.used_bytes <= 2500
    again.put(3, state(100))
    again.put(4, state(101))
    again.put(5, state(102))  # new files take new numbers: those that the checkpoint names stay what they are
    assert all(equal(whole(read[0].client_states)[c], state(c)) for c in range(30))


def test_files_live_as_long_as_a_kept_checkpoint_needs_them(tmp_path: Path) -> None:
    store, checkpoints = ClientStore(tmp_path / "clients", 0), Checkpoints(tmp_path / "checkpoints")
    sizes = []
    for turn in range(6):
        for client in range(5):
            store.put(client, state(10 * turn + client))
        save(store, checkpoints)
        sizes.append(len(files(tmp_path / "clients")))
        for path in sorted((tmp_path / "checkpoints").glob("*.json")):  # both kept ones are whole
            read = Checkpoints(path.parent).latest(())
            assert read is not None
    assert sizes == [5, 10, 10, 10, 10, 10]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 0)
    store.put(4, state(4))
    (name,) = files(tmp_path)
    (tmp_path / name).write_bytes(b"half")
    with pytest.raises(StoreError, match=f"{name}: this client's state cannot be read"):
        store.get(4)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=name):
        store.get(4)
    with pytest.raises(StoreError, match="lie in files"):
        ClientStore().restore({4: StoredState(name)})


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
METHODS: Mapping[str, Callable[[], Algorithm[Any]]] = {
    "ssfl": lambda: SSFL(FIT, 3, Discovery(Probe(CRITERIA["ssfl"].score, 1, 8), 0.5)),
    "dispfl": lambda: DisPFL(FIT, 0.5, neighbour_count=2),
}


def rig_with(store: ClientStore | None, method: str) -> Rig:
    algorithm, data, module = METHODS[method](), float_data(), tiny_net()
    runner = make_runner(data, module, algorithm.tasks)
    rig = make_rig(algorithm, data, module, executor=SequentialExecutor(runner))
    rig.recorder.inner.store = ClientStore() if store is None else store
    return rig


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_whose_states_all_lie_on_disk_ends_the_same(method: str, tmp_path: Path) -> None:
    ends = []
    for store in (None, ClientStore(tmp_path, 0)):
        rig = rig_with(store, method)
        ends.append(rig.loop.run(rig.loop.start(rig.theta, 3)))
    plain, stored = (whole(e.client_states) for e in ends)
    assert plain.keys() == stored.keys()
    assert all(equal(plain[c], stored[c]) for c in plain)
    if method == "dispfl":
        assert files(tmp_path)


@pytest.mark.parametrize("method", list(METHODS))
def test_resume_with_states_on_disk(method: str, tmp_path: Path) -> None:
    straight = rig_with(None, method)
    wanted = whole(straight.loop.run(straight.loop.start(straight.theta, 3)).client_states)
    rig, checkpoints = rig_with(ClientStore(tmp_path / "clients", 0), method), Checkpoints(tmp_path / "c")
    now = rig.loop.start(rig.theta, 3)
    plan = rig.algorithm.configure_round(now.state, now.clock, rig.context)
    assert plan is not None
    now = rig.loop.step(now, plan)
    checkpoints.save(now)
    rig.recorder.inner.store.keep(now.client_states)
    read = checkpoints.latest(rig.algorithm.records)
    assert read is not None
    again = rig_with(ClientStore(tmp_path / "clients", 0), method)
    again.recorder.restore(read[0].client_states)
    ended = whole(again.loop.run(replace(read[0], clock=now.clock)).client_states)
    assert all(equal(ended[c], wanted[c]) for c in wanted)


class Remembering:
    """An executor without arithmetic: every client remembers a vector of its own, and what it was before."""

    layout = Layout((), (), (), ())

    def __init__(self, floats: int) -> None:
        self.floats = floats
        self.alive = weakref.WeakSet[Tensor]()
        self.most_bytes = 0

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            client = job.instruction.client
            seen = job.state["w"][0].item() if job.state else client
            assert seen == client
            new = torch.full((self.floats,), float(client))
            self.alive.add(new)
            reply = ClientReply(client, Payload({}, client), ClientReport(1))
            yield Outcome(reply, {"w": new})

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def close(self) -> None: ...

    def count(self) -> None:
        gc.collect()
        self.most_bytes = max(self.most_bytes, sum(t.nbytes for t in self.alive))


def most_bytes(clients: int, folder: Path, budget: int, cohort: int = 20) -> int:
    """The most that tensors of clients held while all clients took part, two rounds of a cohort after another."""
    executor = Remembering(floats=250)
    simulator = Simulator(executor, store=ClientStore(folder, budget))
    told: Mapping[int, ClientState] = {}
    inbox = (Payload({"w": DenseValues(torch.zeros(1))}),)
    for round_, first in enumerate([*range(0, clients, cohort), *range(0, min(clients, 200), cohort)]):
        instructions = tuple(Instruction(c, inbox) for c in range(first, first + cohort))
        list(simulator(RoundPlan("train", instructions, Clock(round_ + 1, 10**6))))
        told = simulator.client_states()  # the loop holds the last snapshot, as here
        if round_ % 40 == 0:
            executor.count()
    executor.count()
    assert len(told) == clients
    return executor.most_bytes


def test_memory_does_not_grow_with_the_number_of_clients(tmp_path: Path) -> None:
    budget = 50 * KB
    few, many = (most_bytes(n, tmp_path / str(n), budget) for n in (100, 3000))
    assert few <= 2 * budget + 20 * KB  # the store, and what the loop's last snapshot still holds
    assert many <= 2 * budget + 20 * KB  # 3 MB of states
