"""A complete simulation in one call, for scripts and notebooks: one process, no run folder, no configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.batch_order import BatchOrder
from ssfl.engine.client.data_source import DataSource
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.loop import RoundLoop
from ssfl.engine.simulator import Simulator
from ssfl.wire.stack import WireStack


@dataclass(frozen=True)
class Result:
    """The result of a simulation."""

    theta: Tensor | None
    """The global model's effective weights [P]; None for methods without a global model."""
    state: Any
    """The last state of the algorithm."""
    events: list[Mapping[str, Any]]
    """One event per exchange (docs/metrics.md)."""


def simulate(
    algorithm: Algorithm[Any],
    module: nn.Module,
    federation: DataSource,
    rounds: int,
    seed: int,
    order: BatchOrder | None = None,
    arithmetic: Arithmetic | None = None,
    wire: WireStack | None = None,
) -> Result:
    """Train `module` with `algorithm` on the federation's clients; its current weights are the initial model.

    order: the order of examples; None: random permutations from the seed. wire: the transforms of payloads in both
    directions; None: none. The module's weights are undefined afterwards: use `Result.theta`.
    """
    runner = ClientRunner(
        module,
        federation,
        algorithm.tasks,
        seed,
        order,
        Arithmetic() if arithmetic is None else arithmetic,
        wire=wire,
    )
    theta = runner.layout.flatten(module)
    counts = {k: federation.examples(k) for k in range(federation.num_clients)}
    context = ServerContext(runner.layout, counts, seed)
    executor = SequentialExecutor(runner)
    events: list[Mapping[str, Any]] = []
    loop = RoundLoop(
        algorithm,
        context,
        CodedExchange(Simulator(executor), runner.wire_stack),
        CentralTest(executor, federation),
        emit=events.append,
        save=lambda progress: 0.0,
    )
    progress = loop.run(loop.start(theta, rounds))
    return Result(algorithm.weights_to_evaluate(progress.state, context), progress.state, events)
