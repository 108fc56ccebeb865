"""Small federations and networks for the tests of engine, contract and oracles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import (
    Algorithm,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    PeerModel,
    RoundPlan,
    ServerContext,
)
from ssfl.core.net import Batch
from ssfl.core.payloads import Payload, Traffic
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.batch_order import BatchOrder
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.loop import Exchange, RoundLoop
from ssfl.engine.simulator import Absence, Simulator, all_answer
from ssfl.engine.state.client_store import ClientStore
from ssfl.engine.state.progress import Progress
from ssfl.wire.stack import WireStack

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """The engine's view of a data set: labels and classes."""

    num_classes: int
    test_y: Tensor


@dataclass(frozen=True)
class FloatData:
    """A data source over float inputs, without augmentation, independent of `ssfl.data`."""

    train: tuple[Batch, ...]
    test: tuple[Batch, ...]
    num_classes: int
    """Inputs and labels per client."""

    @property
    def arrays(self) -> Labels:
        return Labels(self.num_classes, torch.cat([y for _, y in self.test]))

    @property
    def test_parts(self) -> tuple[Tensor, ...]:
        ends = torch.tensor([len(y) for _, y in self.test]).cumsum(0).tolist()
        return tuple(torch.arange(e - len(y), e) for e, (_, y) in zip(ends, self.test, strict=True))

    @property
    def num_clients(self) -> int:
        return len(self.train)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train[0][0].shape[1:])

    def examples(self, client: int) -> int:
        return len(self.train[client][1])

    def train_batches(
        self, client: int, order: Tensor, batch_size: int, generator: torch.Generator | None
    ) -> Iterator[Batch]:
        x, y = self.train[client]
        return ((x[rows], y[rows]) for rows in torch.split(order, batch_size))

    def test_batches(self, client: int | None, batch_size: int) -> Iterator[Batch]:
        x, y = self._all_tests() if client is None else self.test[client]
        return _blocks(x, y, batch_size) if len(y) else iter(())

    def test_rows(self, first: int, last: int, batch_size: int) -> Iterator[Batch]:
        x, y = self._all_tests()
        return _blocks(x[first:last], y[first:last], batch_size)

    def _all_tests(self) -> Batch:
        return torch.cat([x for x, _ in self.test]), torch.cat([y for _, y in self.test])


def _blocks(x: Tensor, y: Tensor, size: int) -> Iterator[Batch]:
    return zip(torch.split(x, size), torch.split(y, size), strict=True)


def float_data(sizes: Sequence[int] = (13, 8, 1, 21, 5), classes: int = 3, seed: int = 0) -> FloatData:
    """Clients of unequal sizes with learnable 1x6x6 inputs; the last batches of 8 are partial; one has 1 example."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Batch:
        y = torch.randint(0, classes, (count,), generator=generator)
        x = torch.randn(count, 1, 6, 6, generator=generator) + y[:, None, None, None]
        return x, y

    return FloatData(tuple(draw(n) for n in sizes), tuple(draw(4 + n // 2) for n in sizes), classes)


def tiny_net(norm: str = "group", seed: int = 0, channels: int = 1, classes: int = 3) -> nn.Module:
    """Two convolutions and a linear layer; 'group', 'batch' (running statistics) or 'none' as the norm."""
    norms: Mapping[str, Any] = {
        "group": lambda c: nn.GroupNorm(2, c),
        "batch": nn.BatchNorm2d,
        "none": lambda c: nn.Identity(),
    }
    make = norms[norm]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1, bias=False),
            make(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1),
            make(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, classes),
        )


@dataclass
class Lossy:
    """An exchange whose clients all work; replies of the clients in `lost` do not arrive."""

    inner: Exchange
    lost: Absence

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        lost, counted = self.lost(plan), Meter()
        for reply in self.inner(plan, counted):
            if reply.client not in lost:
                meter.received(reply.client, reply.traffic or Traffic.of(reply.payload))
                yield reply
        meter.downlink_bytes += counted.downlink_bytes
        meter.downlink_metadata_bytes += counted.downlink_metadata_bytes
        meter.peer_bytes += counted.peer_bytes
        meter.peer_metadata_bytes += counted.peer_metadata_bytes

    def client_memories(self) -> ClientMemories:
        return self.inner.client_memories()

    def restore(self, memories: ClientMemories) -> None:
        self.inner.restore(memories)


@dataclass
class Recorder:
    """An exchange that records every plan, received message and reply, without changes."""

    inner: Exchange
    passed: list[tuple[RoundPlan, list[ClientReply]]] = field(default_factory=list)
    delivered: list[dict[int, tuple[Payload, ...]]] = field(default_factory=list)
    """Per exchange: the messages to each client, with resolved references to peers."""

    def __call__(self, plan: RoundPlan, meter: Meter) -> list[ClientReply]:
        memories = self.inner.client_memories()
        inboxes = {i.client: tuple(resolved(m, plan, memories) for m in i.inbox) for i in plan.instructions}
        replies = list(self.inner(plan, meter))
        self.delivered.append(inboxes)
        self.passed.append((plan, replies))
        return replies

    def client_memories(self) -> ClientMemories:
        return self.inner.client_memories()

    def restore(self, memories: ClientMemories) -> None:
        self.inner.restore(memories)

    def payloads(self) -> list[Payload]:
        """All payloads in both directions, one per message."""
        down = [p for inboxes in self.delivered for inbox in inboxes.values() for p in inbox]
        return down + [r.payload for _, replies in self.passed for r in replies]


def resolved(message: Payload | PeerModel, plan: RoundPlan, memories: ClientMemories) -> Payload:
    """A message of `plan` as a client receives it: itself, its peer's published payload, or the initial model."""
    if isinstance(message, Payload):
        return message
    published = memories[message.client].load().published if message.client in memories else None
    if published is None:
        assert plan.initial_model is not None
        published = plan.initial_model(message.client)
    return replace(published, sender=message.sender)


def payload_in(message: Payload | PeerModel) -> Payload:
    """A message that is not a reference."""
    assert isinstance(message, Payload)
    return message


def states_of(memories: ClientMemories) -> dict[int, ClientState]:
    """Each client's own state; files are read."""
    return {client: memory.load().state for client, memory in memories.items()}


@dataclass
class Rig:
    """A run that is built by hand, with access to all its objects."""

    loop: RoundLoop
    theta: Tensor
    """The initial model [P]."""
    recorder: Recorder
    events: list[Event]
    executor: Executor
    context: ServerContext

    @property
    def algorithm(self) -> Algorithm[Any]:
        return self.loop.algorithm

    def run(self, rounds: int) -> Tensor:
        """All rounds; the global weights [P]."""
        progress = self.loop.run(self.loop.start(self.theta, rounds))
        weights = self.algorithm.weights_to_evaluate(progress.state, self.context)
        assert weights is not None
        return weights

    def plan(self, state: Any, clock: Clock) -> RoundPlan:
        """The next plan of the method."""
        plan = self.algorithm.configure_round(state, clock, self.context)
        assert plan is not None
        return plan

    def step(self, progress: Progress) -> Progress:
        """One exchange."""
        return self.loop.step(progress, self.plan(progress.state, progress.clock))[0]

    def exchanged(self, plan: RoundPlan) -> list[ClientReply]:
        """The replies to a plan, without the loop."""
        return self.recorder(plan, Meter())

    def states(self) -> dict[int, ClientState]:
        """The current state of each client."""
        return states_of(self.recorder.client_memories())


def make_runner(
    data: FloatData,
    module: nn.Module,
    tasks: Mapping[str, ClientTask],
    seed: int = 7,
    dtype: torch.dtype = torch.float64,
    order: BatchOrder | None = None,
    wire: WireStack | None = None,
) -> ClientRunner:
    """One client's work, in float64 by default."""
    return ClientRunner(module, data, tasks, seed, order, Arithmetic(dtype=dtype), wire=wire)


def make_rig(
    algorithm: Algorithm[Any],
    data: FloatData,
    module: nn.Module,
    seed: int = 7,
    wire: bool = False,
    dtype: torch.dtype = torch.float64,
    order: BatchOrder | None = None,
    executor: Executor | None = None,
    store: ClientStore | None = None,
    absent: Absence = all_answer,
    lost: Absence = all_answer,
    stack: WireStack | None = None,
) -> Rig:
    """A federation over `executor` (the sequential one unless given); replies of `lost` clients never arrive.

    stack: the server's transforms; the executor's runner has those of the clients. The recorder sees sent payloads.
    """
    runner = make_runner(data, module, algorithm.tasks, seed, dtype, order)
    chosen = executor or SequentialExecutor(runner)
    context = ServerContext(runner.layout, {k: data.examples(k) for k in range(data.num_clients)}, seed)
    simulator, events = Simulator(chosen, wire, store, absent), list[Event]()
    recorder = Recorder(simulator if lost is all_answer else Lossy(simulator, lost))
    exchange = recorder if stack is None else CodedExchange(recorder, stack)
    loop = RoundLoop(
        algorithm, context, exchange, CentralTest(chosen, data), events.append, lambda progress: 0.0
    )
    theta = runner.layout.flatten(module)
    return Rig(loop, theta, recorder, events, chosen, context)
