"""Small federations and networks that the tests of engine, contract and oracles drive runs with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ClientReply, ClientTask, RoundPlan, ServerContext
from ssfl.core.net import Batch
from ssfl.core.payloads import Payload
from ssfl.engine.arithmetic import Arithmetic
from ssfl.engine.driver import Federation, TestSet
from ssfl.engine.executors import Executor, SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.order import BatchOrder
from ssfl.engine.simulator import Simulator

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """The engine's view of a data set: labels and classes."""

    num_classes: int
    test_y: Tensor


@dataclass(frozen=True)
class FloatData:
    """A data source over float inputs, without augmentation, written apart from `ssfl.data`."""

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
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats the stack each time: slow here
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
class Recorder:
    """An exchange that notes every plan and reply that passes, without changing any."""

    inner: Simulator
    passed: list[tuple[RoundPlan, list[ClientReply]]] = field(default_factory=list)

    def __call__(self, plan: RoundPlan) -> list[ClientReply]:
        replies = list(self.inner(plan))
        self.passed.append((plan, replies))
        return replies

    def client_states(self) -> Mapping[int, Mapping[str, Tensor]]:
        return self.inner.client_states()

    def restore(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        self.inner.restore(states)

    def payloads(self) -> list[Payload]:
        """All that crossed, both ways, once per edge."""
        down = [p for plan, _ in self.passed for i in plan.instructions for p in i.inbox]
        return down + [r.payload for _, replies in self.passed for r in replies]


@dataclass
class Rig:
    """A run set up by hand, with everything in reach."""

    loop: Federation
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


def make_runner(
    data: FloatData,
    module: nn.Module,
    tasks: Mapping[str, ClientTask],
    seed: int = 7,
    dtype: torch.dtype = torch.float64,
    order: BatchOrder | None = None,
) -> ClientRunner:
    """One client's work, in float64 unless told."""
    return ClientRunner(module, data, tasks, seed, order, Arithmetic(dtype=dtype))


def make_rig(
    algorithm: Algorithm[Any],
    data: FloatData,
    module: nn.Module,
    seed: int = 7,
    wire: bool = False,
    dtype: torch.dtype = torch.float64,
    order: BatchOrder | None = None,
    executor: Executor | None = None,
) -> Rig:
    """A federation over `executor` (the sequential one unless given)."""
    runner = make_runner(data, module, algorithm.tasks, seed, dtype, order)
    chosen = executor or SequentialExecutor(runner)
    context = ServerContext(runner.layout, {k: data.examples(k) for k in range(data.num_clients)}, seed)
    recorder, events = Recorder(Simulator(chosen, wire)), []  # type: ignore[var-annotated]
    test_set = TestSet(data.arrays.test_y, data.num_classes, data.test_parts)
    loop = Federation(algorithm, context, recorder, chosen, test_set, events.append, lambda progress: 0.0)
    theta = runner.layout.flatten(module)
    return Rig(loop, theta, recorder, events, chosen, context)
