"""Client states above the memory budget: stored in files, read back equal, named by checkpoints, later removed."""

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
from ssfl.core.saliency import SALIENCIES
from ssfl.engine.accounting.ledger import Ledger, Meter
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.memory import ClientMemories, ClientMemory, MemoryHandle
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.client_store import ClientStore, StoredMemory, StoreError, whole
from ssfl.engine.state.progress import Progress
from tests.support.memories import same_memory
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 0.99))
KB = 1000


def memory(seed: int, floats: int = 250) -> ClientMemory:
    generator = torch.Generator().manual_seed(seed)
    return ClientMemory(
        {"w": torch.randn(floats, generator=generator), "bits": torch.rand(7, generator=generator) < 0.5}
    )


def equal(a: MemoryHandle, b: MemoryHandle) -> bool:
    return same_memory(a.load(), b.load())


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def files_of(memories: ClientMemories) -> dict[int, str]:
    return {c: m.file for c, m in memories.items() if isinstance(m, StoredMemory)}


# ── put and get ──────────────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40), st.integers(0, 5))
def test_like_a_dictionary_whatever_the_budget(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], states_in_memory: int
) -> None:
    """Value 0 is a tensor that several clients share; a dictionary is the oracle."""
    folder = tmp_path_factory.mktemp("store")
    store, oracle = ClientStore(folder, states_in_memory * KB), dict[int, ClientMemory]()
    common = ClientMemory({"w": torch.arange(250.0), "bits": torch.ones(7, dtype=torch.bool)})
    snapshots: list[tuple[ClientMemories, dict[int, ClientMemory]]] = []
    for client, value in steps:
        new = common if value == 0 else memory(value)
        store.put(client, new)
        oracle[client] = new
        snapshots.append((store.snapshot(), dict(oracle)))
        assert all(equal(store.get(c), s) for c, s in oracle.items())
        assert equal(store.get(99), ClientMemory())
    for snapshot, then in snapshots:  # no checkpoint was saved, so no file was removed
        assert all(equal(whole(snapshot)[c], s) for c, s in then.items())
        assert list(snapshot) == sorted(then)


def test_the_budget_holds_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 2500)
    for client in range(2):
        store.put(client, memory(client))  # 1007 bytes each
    assert files(tmp_path) == set()
    store.get(0)
    store.put(2, memory(2))
    assert store.used_bytes == 2014
    assert files(tmp_path) == {"1-1.safetensors"}


def test_without_a_folder_nothing_leaves_memory() -> None:
    store = ClientStore(None, 0)
    kept = memory(1)
    store.put(1, kept)
    assert store.get(1) is kept


def test_a_shared_tensor_is_held_once_and_not_written(tmp_path: Path) -> None:
    mask, views = torch.ones(4 * KB, dtype=torch.bool), torch.randn(1000)
    store = ClientStore(tmp_path, 6 * KB)
    for client in range(50):
        store.put(client, ClientMemory({"mask": mask, "w": torch.full((100,), float(client))}))
    assert store.used_bytes <= 6 * KB
    written = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert written < 50 * 600  # 400 bytes of values and a header each; the mask alone would be 4 KB
    read = store.get(0).load().state
    assert read["mask"].data_ptr() == mask.data_ptr()
    assert read["w"].tolist() == [0.0] * 100
    # safetensors refuses tensors that share memory, so they are copied
    store.put(60, ClientMemory({"a": views[:10], "b": views[5:]}))
    for client in range(50):
        store.put(client, memory(client, 1000))
    assert torch.equal(store.get(60).load().state["b"], views[5:])
    assert store.used_bytes <= 6 * KB + 4 * KB


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────
def progress(store: ClientStore) -> Progress:
    return Progress(torch.zeros(1), Clock(1, 9), None, Ledger(), store.snapshot())


def save(store: ClientStore, checkpoints: Checkpoints) -> Path:
    saved = progress(store)
    store.flush()
    path = checkpoints.save(saved)
    store.keep(saved.client_memories)
    return path


def test_a_checkpoint_names_files_and_a_moved_folder_goes_on(tmp_path: Path) -> None:
    run, store = tmp_path / "run", ClientStore(tmp_path / "run" / "clients", 2500)
    for client in range(30):
        store.put(client, memory(client))
    path = save(store, Checkpoints(run / "checkpoints"))
    assert path.with_suffix(".safetensors").stat().st_size < 4 * KB  # two states of thirty
    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    read = Checkpoints(run / "checkpoints").latest(())
    assert read is not None
    again = ClientStore(run / "clients", 2500)
    again.restore(read[0].client_memories)
    assert all(equal(again.get(c), memory(c)) for c in range(30))
    assert again.used_bytes <= 2500
    bound = again.snapshot()
    assert files_of(bound) == files_of(read[0].client_memories)
    again.put(3, memory(100))
    again.put(4, memory(101))
    # New files get new numbers, so files that the checkpoint names do not change.
    again.put(5, memory(102))
    assert all(equal(whole(bound)[c], memory(c)) for c in range(30))


def test_files_live_as_long_as_a_kept_checkpoint_needs_them(tmp_path: Path) -> None:
    store, checkpoints = ClientStore(tmp_path / "clients", 0), Checkpoints(tmp_path / "checkpoints")
    sizes = []
    for turn in range(6):
        for client in range(5):
            store.put(client, memory(10 * turn + client))
        save(store, checkpoints)
        sizes.append(len(files(tmp_path / "clients")))
        for path in sorted((tmp_path / "checkpoints").glob("*.json")):  # both kept ones are whole
            read = Checkpoints(path.parent).latest(())
            assert read is not None
    assert sizes == [5, 10, 10, 10, 10, 10]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, 0)
    store.put(4, memory(4))
    (name,) = files(tmp_path)
    (tmp_path / name).write_bytes(b"half")
    with pytest.raises(StoreError, match=f"{name}: this client's state cannot be read"):
        store.get(4)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=name):
        store.get(4)
    with pytest.raises(StoreError, match="are in files"):
        ClientStore().restore({4: StoredMemory(name, "{}")})


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
METHODS: Mapping[str, Callable[[], Algorithm[Any]]] = {
    "ssfl": lambda: SSFL(FIT, 3, Discovery(Probe(SALIENCIES["ssfl"], 1, 8), 0.5)),
    "dispfl": lambda: DisPFL(FIT, 0.5, neighbour_count=2),
}


def rig_with(store: ClientStore | None, method: str) -> Rig:
    algorithm, data, module = METHODS[method](), float_data(), tiny_net()
    runner = make_runner(data, module, algorithm.tasks)
    return make_rig(algorithm, data, module, executor=SequentialExecutor(runner), store=store)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_whose_states_all_lie_on_disk_ends_the_same(method: str, tmp_path: Path) -> None:
    ends = []
    for store in (None, ClientStore(tmp_path, 0)):
        rig = rig_with(store, method)
        ends.append(rig.loop.run(rig.loop.start(rig.theta, 3)))
    plain, stored = (whole(e.client_memories) for e in ends)
    assert plain.keys() == stored.keys()
    assert all(equal(plain[c], stored[c]) for c in plain)
    if method == "dispfl":
        assert files(tmp_path)


@pytest.mark.parametrize("method", list(METHODS))
def test_resume_with_states_on_disk(method: str, tmp_path: Path) -> None:
    straight = rig_with(None, method)
    wanted = whole(straight.loop.run(straight.loop.start(straight.theta, 3)).client_memories)
    store, checkpoints = ClientStore(tmp_path / "clients", 0), Checkpoints(tmp_path / "c")
    rig = rig_with(store, method)
    now = rig.step(rig.loop.start(rig.theta, 3))
    checkpoints.save(now)
    store.keep(now.client_memories)
    read = checkpoints.latest(rig.algorithm.records)
    assert read is not None
    again = rig_with(ClientStore(tmp_path / "clients", 0), method)
    again.recorder.restore(read[0].client_memories)
    ended = whole(again.loop.run(replace(read[0], clock=now.clock)).client_memories)
    assert all(equal(ended[c], wanted[c]) for c in wanted)


class Remembering:
    """An executor without arithmetic: every client state has a vector and its previous value."""

    layout = Layout((), (), (), ())

    def __init__(self, floats: int) -> None:
        self.floats = floats
        self.alive = weakref.WeakSet[Tensor]()
        self.most_bytes = 0

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        for job in jobs:
            client = job.client
            before = job.memory.load().state
            seen = before["w"][0].item() if before else client
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
    """Maximum bytes of client tensors while all clients take part in cohorts, and up to 200 of them again."""
    executor = Remembering(floats=250)
    simulator = Simulator(executor, store=ClientStore(folder, budget))
    memories: ClientMemories = {}
    inbox = (Payload({"w": DenseValues(torch.zeros(1))}),)
    for round_, first in enumerate([*range(0, clients, cohort), *range(0, min(clients, 200), cohort)]):
        instructions = tuple(Instruction(c, inbox) for c in range(first, first + cohort))
        list(simulator(RoundPlan("train", instructions, Clock(round_ + 1, 10**6)), Meter()))
        memories = simulator.client_memories()  # the loop holds the last snapshot, as here
        if round_ % 40 == 0:
            executor.count()
    executor.count()
    assert len(memories) == clients
    return executor.most_bytes


def test_memory_does_not_grow_with_the_number_of_clients(tmp_path: Path) -> None:
    budget = 50 * KB
    few, many = (most_bytes(n, tmp_path / str(n), budget) for n in (100, 3000))
    assert few <= 2 * budget + 20 * KB  # the store, and what the loop's last snapshot still holds
    assert many <= 2 * budget + 20 * KB  # 3 MB of states
