"""A whole simulation in one call, for scripts and notebooks: no folder, no configuration, one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.engine.arithmetic import Arithmetic
from ssfl.engine.driver import Federation, TestSet
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.order import BatchOrder
from ssfl.engine.simulator import Simulator
from ssfl.engine.source import DataSource


@dataclass(frozen=True)
class Result:
    """What a simulation ends with."""

    theta: Tensor | None
    """The global model [P] as the network sees it; None for methods without one."""
    state: Any
    """The algorithm's own last state."""
    events: list[Mapping[str, Any]]
    """One per exchange, docs/metrics.md."""


def simulate(
    algorithm: Algorithm[Any],
    module: nn.Module,
    federation: DataSource,
    rounds: int,
    seed: int,
    order: BatchOrder | None = None,
    arithmetic: Arithmetic | None = None,
) -> Result:
    """Train `module` (its present weights are the initial model) by `algorithm` over the federation's clients.

    order: which examples come when; None: seeded permutations. Afterwards the module holds some client's weights:
    take `Result.theta`.
    """
    runner = ClientRunner(
        module, federation, algorithm.tasks, seed, order, Arithmetic() if arithmetic is None else arithmetic
    )
    theta = runner.layout.flatten(module)
    counts = {k: federation.examples(k) for k in range(federation.num_clients)}
    context = ServerContext(runner.layout, counts, seed)
    executor = SequentialExecutor(runner)
    events: list[Mapping[str, Any]] = []
    arrays = federation.arrays
    loop = Federation(
        algorithm,
        context,
        Simulator(executor),
        executor,
        TestSet(arrays.test_y, arrays.num_classes, federation.test_parts),
        emit=events.append,
        save=lambda progress: 0.0,
    )
    progress = loop.run(loop.start(theta, rounds))
    return Result(algorithm.weights_to_evaluate(progress.state, context), progress.state, events)
