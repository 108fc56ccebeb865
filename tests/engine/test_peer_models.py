"""Models that clients send to each other: plans refer to them, exchanges resolve them, memory has them once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import Clock, Instruction, PeerModel, RoundPlan
from ssfl.algorithms.dispfl import DisPFL, MaskSearch
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SERVER, DenseValues, Payload, SparseValues, pack_sparse
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.memory import ClientMemories, ClientMemory
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor
from ssfl.engine.executors.processes.shared_memory import Arena, SentTensors, dumps
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.threads import ThreadExecutor
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.client_store import ClientStore, StoredMemory, whole
from ssfl.engine.state.progress import Progress
from tests.support.faults import echo
from tests.support.memories import same_memory, same_value
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

FIT = FitSpec(epochs=1, batch_size=8, schedule=ExponentialDecay(0.1, 0.99))
ROUNDS = 3


def model(seed: int, size: int = 20) -> Payload:
    generator = torch.Generator().manual_seed(seed)
    theta, mask = torch.randn(size, generator=generator), torch.rand(size, generator=generator) < 0.5
    return Payload({"w": pack_sparse(theta, mask)}, seed)


def method() -> DisPFL:
    """A cohort of three per round, so that some clients publish late and some never."""
    return DisPFL(FIT, 0.5, neighbour_count=3, per_round=3)


def rig_with(executor: Executor | None = None, store: ClientStore | None = None, wire: bool = False) -> Rig:
    return make_rig(method(), float_data(), tiny_net("batch"), executor=executor, store=store, wire=wire)


def end_of(rig: Rig) -> ClientMemories:
    return whole(rig.loop.run(rig.loop.start(rig.theta, ROUNDS)).client_memories)


def same_memories(one: ClientMemories, other: ClientMemories) -> bool:
    return one.keys() == other.keys() and all(same_memory(one[c].load(), other[c].load()) for c in other)


# ── what a reference means ───────────────────────────────────────────────────────────────────────────────────────
def test_a_reference_is_what_its_client_published_else_its_initial_model() -> None:
    made: list[int] = []

    def initial(client: int) -> Payload:
        made.append(client)
        return model(100 + client)

    own = Payload({"w": DenseValues(torch.zeros(3))})
    inbox = (own, PeerModel(1, sender=1), PeerModel(2, sender=2), PeerModel(3, sender=SERVER))
    peers = {1: ClientMemory({}, model(1)), 2: ClientMemory({"state": torch.ones(1)}, None)}
    job = ClientJob("train", 0, inbox, Clock(1, 2), peers=peers, initial_model=initial)
    assert made == []  # no model is created before it is needed
    first, published, unpublished, from_server = job.received()
    assert first is own
    assert published.parts is model(1).parts or same_value(published, model(1))
    assert same_value(unpublished, replace(model(102), sender=2))
    assert same_value(from_server, replace(model(103), sender=SERVER))
    assert made == [2, 3]


def test_a_reference_to_nothing_is_an_error() -> None:
    job = ClientJob("train", 0, (PeerModel(4, sender=4),), Clock(1, 2))
    with pytest.raises(
        LookupError, match="client 4 has published nothing, and the plan names no initial model"
    ):
        job.received()


def published_once(store: ClientStore) -> Simulator:
    """Clients 0 and 1 have sent [0, 2, 4, 6, 8] + 2 * client in a plan that publishes, client 2 in another."""
    runner = make_runner(float_data(), tiny_net(), {"echo": echo()})
    simulator = Simulator(SequentialExecutor(runner), store=store)
    for clients, publish in (((0, 1), True), ((2,), False)):
        sent = [Payload({"w": DenseValues(torch.arange(5.0) + c)}) for c in clients]
        instructions = tuple(Instruction(c, (p,)) for c, p in zip(clients, sent, strict=True))
        list(simulator(RoundPlan("echo", instructions, Clock(1, 9), publish=publish), Meter()))
    return simulator


@pytest.mark.parametrize("budget", [None, 0])
def test_only_a_plan_that_publishes_leaves_a_model_within_reach(budget: int | None, tmp_path: Path) -> None:
    simulator = published_once(ClientStore(tmp_path, budget))
    memories = simulator.client_memories()
    assert [isinstance(m, StoredMemory) for m in memories.values()] == [budget == 0] * 3
    assert [m.load().published is None for m in memories.values()] == [False, False, True]
    meter = Meter()
    inbox = (PeerModel(1, sender=1),)
    (reply,) = simulator(RoundPlan("echo", (Instruction(3, inbox),), Clock(2, 9)), meter)
    found = reply.payload.parts["w"]
    assert isinstance(found, DenseValues)
    assert found.values.tolist() == [4.0 + 4 * i for i in range(5)]
    assert (meter.downlink_bytes, meter.peer_bytes, meter.uplink_bytes) == (0, 41 + 20, 41 + 20)
    with pytest.raises(LookupError, match="client 2 has published nothing"):
        list(simulator(RoundPlan("echo", (Instruction(3, (PeerModel(2, 2),)),), Clock(2, 9)), Meter()))


def test_what_was_published_stays_when_the_client_sends_something_else() -> None:
    simulator = published_once(ClientStore())
    before = simulator.client_memories()[0].load().published
    inbox = (Payload({"w": DenseValues(torch.full((5,), 9.0))}),)
    list(simulator(RoundPlan("echo", (Instruction(0, inbox),), Clock(2, 9)), Meter()))
    memory = simulator.client_memories()[0].load()
    assert memory.published is before
    assert memory.state["memory"].tolist() == [18.0] * 5


# ── in memory or in files ────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def straight() -> ClientMemories:
    """The result in one process, one client after the other."""
    return end_of(rig_with())


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessExecutor]:
    if not Path("/proc/self/status").exists():
        pytest.skip("workers need Linux")
    executor = ProcessExecutor(make_runner(float_data(), tiny_net("batch"), method().tasks), 2)
    yield executor
    executor.close()


def test_on_disk(straight: ClientMemories, tmp_path: Path) -> None:
    assert same_memories(end_of(rig_with(store=ClientStore(tmp_path, 0))), straight)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [None, 0, 4000])
def test_through_worker_processes(
    budget: int | None, straight: ClientMemories, workers: ProcessExecutor, tmp_path: Path
) -> None:
    """States in this process's memory, in files that workers read themselves, and mixed."""
    assert same_memories(end_of(rig_with(workers, ClientStore(tmp_path, budget))), straight)


def test_over_the_wire(straight: ClientMemories) -> None:
    assert same_memories(end_of(rig_with(wire=True)), straight)


@pytest.mark.parametrize("budget", [None, 0])
def test_after_a_resume(budget: int | None, straight: ClientMemories, tmp_path: Path) -> None:
    for stop in range(ROUNDS):
        folder = tmp_path / str(stop)
        store, checkpoints = ClientStore(folder / "clients", budget), Checkpoints(folder / "checkpoints")
        rig = rig_with(store=store)
        progress = rig.loop.start(rig.theta, ROUNDS)
        for _ in range(stop):
            progress = rig.step(progress)
        store.flush()
        checkpoints.save(progress)
        store.keep(progress.client_memories)
        read = checkpoints.latest(rig.algorithm.records)
        assert read is not None
        again = rig_with(store=ClientStore(folder / "clients", budget))
        again.recorder.restore(read[0].client_memories)
        assert same_memories(whole(again.loop.run(read[0]).client_memories), straight)


def test_before_it_has_published_a_client_is_its_initial_model_everywhere(
    workers: ProcessExecutor, tmp_path: Path
) -> None:
    """Round 1: no client has published, so every neighbour's model is theta on that neighbour's first mask."""
    seen: list[Mapping[int, Sequence[Payload]]] = []
    for executor, store in ((None, None), (None, ClientStore(tmp_path, 0)), (workers, None)):
        rig = rig_with(executor, store)
        rig.step(rig.loop.start(rig.theta, ROUNDS))
        seen.append(rig.recorder.delivered[0])
        firsts = rig.algorithm.initialize(rig.theta, rig.context).masks
        for inbox in rig.recorder.delivered[0].values():
            for payload in inbox[1:]:
                part = payload.parts["w"]
                assert isinstance(part, SparseValues)
                packed = firsts[payload.sender]
                shifts = torch.arange(7, -1, -1, dtype=torch.uint8)
                bits = packed.unsqueeze(1).bitwise_right_shift(shifts).bitwise_and(1).flatten().bool()
                assert part.bits.equal(bits[: len(rig.theta)])
                assert part.values.equal(rig.theta[part.bits])
    assert all(same_value(dict(other), dict(seen[0])) for other in seen[1:])


# ── in memory once ───────────────────────────────────────────────────────────────────────────────────────────────
LOCAL: Mapping[str, Callable[[ClientRunner], Executor]] = {
    "sequential": SequentialExecutor,
    "batched": lambda runner: BatchedExecutor(runner, 2),
    "threads": lambda runner: ThreadExecutor(runner, 2),
}


def storages(memory: ClientMemory) -> dict[int, int]:
    """Address -> bytes of the tensors in a client's memory."""
    assert memory.published is not None
    part = memory.published.parts["w"]
    assert isinstance(part, SparseValues)
    tensors = [*memory.state.values(), part.values, part.bits]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def check_held_once(memories: ClientMemories, size: int) -> int:
    """Values on the mask (float64), their mask, and the next mask, each stored once; returns the total bytes."""
    total = 0
    for handle in memories.values():
        memory = handle.load()
        assert memory.published is not None
        part = memory.published.parts["w"]
        assert isinstance(part, SparseValues)
        assert part.values.data_ptr() == memory.state["values"].data_ptr()
        assert part.bits.data_ptr() == memory.state["bits"].data_ptr()
        held = sum(storages(memory).values())
        assert held == 8 * int(part.bits.count_nonzero()) + 2 * size
        total += held
    assert memories
    return total


@pytest.mark.parametrize("name", [*LOCAL, "processes"])
def test_a_model_is_held_once_for_its_client_and_its_peers(name: str, workers: ProcessExecutor) -> None:
    runner = make_runner(float_data(), tiny_net("batch"), method().tasks)
    executor = workers if name == "processes" else LOCAL[name](runner)
    store = ClientStore()
    rig = rig_with(executor, store)
    rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    assert store.used_bytes == check_held_once(rig.recorder.client_memories(), len(rig.theta))
    if name != "processes":
        executor.close()


def test_it_is_written_once_and_read_back_as_one(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "clients", 0)
    rig = rig_with(store=store)
    progress = rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    memories = progress.client_memories
    for client, handle in memories.items():
        assert isinstance(handle, StoredMemory)
        state = handle.load().state
        held = sum(t.nbytes for t in state.values())
        assert held <= (tmp_path / "clients" / handle.file).stat().st_size < held + 500, client
        assert handle.load().published is not None
    read = Checkpoints(tmp_path / "c")
    plain = rig_with()
    read.save(plain.loop.run(plain.loop.start(plain.theta, ROUNDS)))
    loaded = read.latest(rig.algorithm.records)
    assert loaded is not None
    check_held_once(loaded[0].client_memories, len(rig.theta))


def test_a_mask_that_does_not_move_is_held_once_too() -> None:
    fixed = DisPFL(FIT, 0.5, MaskSearch(grow="none"), neighbour_count=2)
    rig = make_rig(fixed, float_data(), tiny_net())
    rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    for handle in rig.recorder.client_memories().values():
        state = handle.load().state
        assert state["mask"].data_ptr() == state["bits"].data_ptr()


def test_a_worker_is_sent_what_its_client_receives_and_no_peers_state() -> None:
    rig = rig_with()
    taken: list[ClientJob] = []

    class Taking:
        """Notes the jobs."""

        layout = rig.executor.layout

        def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
            taken.extend(jobs)
            return rig.executor.run(jobs)

        def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return rig.executor.predict(theta)

        def close(self) -> None: ...

    noting = rig_with(Taking())
    noting.loop.run(noting.loop.start(noting.theta, ROUNDS))
    peers = [peer.load() for job in taken for peer in job.peers.values()]
    assert any(peer.published is not None for peer in peers)
    assert all(peer.state == {} for peer in peers)


def test_a_job_over_files_carries_names_instead_of_models(tmp_path: Path) -> None:
    """Messages to a worker process contain no tensor of a peer whose state is in a file."""
    store = ClientStore(tmp_path, 0)
    rig = rig_with(store=store)
    rig.step(rig.loop.start(rig.theta, ROUNDS))
    handles = store.snapshot()
    inbox = tuple(PeerModel(c, sender=c) for c in handles)
    job = ClientJob("train", 9, inbox, Clock(2, 3), peers=handles)
    arena = Arena()
    raw = dumps(job, arena, SentTensors())
    assert arena.used == 0
    assert len(raw) < 5000
    arena.close()


# ── many clients ─────────────────────────────────────────────────────────────────────────────────────────────────
class Counting:
    """The sequential executor; counts the bytes of all clients' tensors that are still alive."""

    def __init__(self, runner: ClientRunner) -> None:
        self.inner = SequentialExecutor(runner)
        self.seen: dict[int, weakref.ref[Tensor]] = {}
        self.most_bytes = 0

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        for outcome in self.inner.run(jobs):
            assert outcome.state is not None
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
    rig = make_rig(algorithm, data, module, executor=counting, store=store)
    rig.loop.exchange = rig.recorder.inner  # a recorder would keep the payloads
    gc.collect()
    return rig, counting, rig.loop.run(rig.loop.start(rig.theta, ROUNDS))


def state_bytes(rig: Rig) -> int:
    """Values (float64) at half density and two masks, at most."""
    return rig.theta.numel() * (8 + 2)


def test_memory_does_not_grow_with_the_clients_whose_models_are_within_reach(tmp_path: Path) -> None:
    most = {}
    for clients in (6, 24):
        budget = 3 * 3000
        rig, counting, ended = counted_run(clients, ClientStore(tmp_path / str(clients), budget))
        most[clients] = counting.most_bytes
        # the store, the states in the last snapshot, and the current client
        assert counting.most_bytes <= 2 * budget + 2 * state_bytes(rig)
        assert len(ended.client_memories) == clients
        assert all(m.load().published is not None for m in ended.client_memories.values())
    _, unbounded, _ = counted_run(24, ClientStore())
    assert unbounded.most_bytes > 1.5 * most[24]


def test_a_checkpoint_does_not_hold_what_lies_on_disk_and_the_models_are_the_same(tmp_path: Path) -> None:
    _, _, plain = counted_run(24, ClientStore())
    rig, _, ended = counted_run(24, ClientStore(tmp_path / "clients", 0))
    assert same_memories(whole(ended.client_memories), whole(plain.client_memories))
    path = Checkpoints(tmp_path / "checkpoints").save(ended)
    # The initial model, which the method's state keeps, and less than one of the 24 clients' models.
    assert path.with_suffix(".safetensors").stat().st_size < rig.theta.nbytes + state_bytes(rig)


def test_first_masks_cost_a_bit_a_coordinate_until_their_clients_have_published() -> None:
    rig = make_rig(DisPFL(FIT, 0.5, neighbour_count=3, per_round=3), float_data([8] * 12), tiny_net())
    progress = rig.loop.start(rig.theta, ROUNDS)
    size = len(rig.theta)
    for _ in range(ROUNDS):
        masks = progress.state.masks
        assert all(mask.nbytes == -(-size // 8) for mask in masks.values())
        assert set(masks) == set(range(12)) - set(progress.state.joined)
        progress = rig.step(progress)
    assert set(progress.state.joined) == set(rig.recorder.client_memories())


def test_a_model_that_crosses_the_wire_for_many_clients_is_held_once() -> None:
    """With exact measuring, the simulator decodes messages before the first job begins."""
    held: list[list[ClientJob]] = []

    class Watched(SequentialExecutor):
        def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
            held.append(list(jobs))
            return super().run(jobs)

    data, module = float_data(), tiny_net("batch")
    rig = rig_with(Watched(make_runner(data, module, method().tasks)), wire=True)
    end_of(rig)
    for jobs in held[1:]:
        messages = [message for job in jobs for message in job.received()]
        parts = {id(message.parts["w"]) for message in messages}
        assert len(parts) <= data.num_clients < len(messages)
