"""Accuracy on held-out rows equals a count with plain PyTorch, in every executor and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.core.layout import Layout
from ssfl.core.payloads import dense_values
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import Preprocess
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.threads import ThreadExecutor
from ssfl.engine.loop import RoundLoop as Loop
from ssfl.engine.simulate import simulate
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.progress import Progress
from tests.contract.table import ALGORITHMS
from tests.support.rigs import float_data, make_rig, tiny_net

EXECUTORS: dict[str, Callable[[ClientRunner], Executor]] = {
    "sequential": SequentialExecutor,
    "batched": lambda runner: BatchedExecutor(runner, block=2),
    "threads": lambda runner: ThreadExecutor(runner, 2),
    "processes": lambda runner: ProcessExecutor(runner, 2),
}
METHODS = ("fedavg", "ssfl", "dispfl_fair", "sparsyfed")
WANTED = ("global_validation_accuracy", "global_validation_loss", "client_validation_accuracy_mean")


def data() -> Federation:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (110, 1, 6, 6), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 4, (110,), generator=generator)
    whole = Arrays("own", 4, tuple("abcd"), x[:80], y[:80], x[80:], y[80:])
    return build_federation(whole, PartitionSpec("iid", 5, seed=2), Preprocess((0.5,), (0.5,)), 0.3)


def loop_of(
    name: str, executor: str = "sequential", save: Callable[[Progress], float] | None = None
) -> tuple[Loop, Any]:
    method: Algorithm[Any] = ALGORITHMS[name]()
    source, module = data(), tiny_net(classes=4)
    runner = ClientRunner(module, source, method.tasks, 7, None, Arithmetic(dtype=torch.float64))
    chosen = EXECUTORS[executor](runner)
    context = ServerContext(runner.layout, {k: source.examples(k) for k in range(5)}, 7)
    events: list[Any] = []
    loop = Loop(
        method,
        context,
        Simulator(chosen),
        CentralTest(chosen, source),
        events.append,
        save or (lambda progress: 0.0),
    )
    return loop, events


def run(name: str, executor: str = "sequential") -> tuple[Progress, Loop, list[Any]]:
    loop, events = loop_of(name, executor)
    theta = Layout.of(tiny_net(classes=4)).flatten(tiny_net(classes=4).double())
    try:
        return loop.run(loop.start(theta, 2)), loop, events
    finally:
        loop.exchange.executor.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["fedavg", "ssfl"])
def test_the_global_models_accuracy_is_plain_pytorchs(name: str) -> None:
    progress, loop, events = run(name)
    weights = loop.algorithm.weights_to_evaluate(progress.state, loop.context)
    assert weights is not None
    source, module = data(), tiny_net(classes=4).double().eval()
    with torch.no_grad():
        for view, tensor in zip(
            module.parameters(), loop.context.layout.views(weights).values(), strict=True
        ):
            view.copy_(tensor)
        rows = torch.cat(list(source.held_out))
        for x, y, field in (
            (source.arrays.train_x[rows], source.arrays.train_y[rows], "global_validation_accuracy"),
            (source.arrays.test_x, source.arrays.test_y, "global_accuracy"),
        ):
            hits = module((x.double() / 255 - 0.5) / 0.5).argmax(1) == y
            assert events[-1][field] == pytest.approx(float(hits.double().mean()))


@pytest.mark.parametrize("executor", list(EXECUTORS)[1:])
@pytest.mark.parametrize("name", METHODS)
def test_every_executor_counts_the_same(name: str, executor: str) -> None:
    _, _, alone = run(name)
    _, _, other = run(name, executor)
    for field in WANTED:
        if name == "dispfl_fair" and field.startswith("global"):
            assert field not in alone[-1]
            continue
        assert other[-1][field] == pytest.approx(alone[-1][field], abs=1e-9)
        assert alone[-1][field] > 0


def test_clients_own_models_are_tested_on_their_own_rows() -> None:
    """For a dense method: the accuracy of the model that a client sent in the last round."""
    source = data()
    result = simulate(ALGORITHMS["fedavg"](), tiny_net(classes=4).double(), source, rounds=1, seed=7,
                      arithmetic=Arithmetic(dtype=torch.float64))  # fmt: skip
    loop, _ = loop_of("fedavg")
    theta = Layout.of(tiny_net(classes=4)).flatten(tiny_net(classes=4).double())
    progress = loop.start(theta, 1)
    plan = loop.algorithm.configure_round(progress.state, progress.clock, loop.context)
    assert plan is not None
    accuracies = []
    sent = {r.client: r.payload.parts["w"] for r in loop.exchange(plan, Meter())}
    module = tiny_net(classes=4).double().eval()
    for client in range(5):
        weights = dense_values(sent[client]) if client in sent else theta
        with torch.no_grad():
            for view, tensor in zip(
                module.parameters(), loop.context.layout.views(weights).values(), strict=True
            ):
                view.copy_(tensor)
            rows = source.held_out[client]
            hits = (
                module((source.arrays.train_x[rows].double() / 255 - 0.5) / 0.5).argmax(1)
                == source.arrays.train_y[rows]
            )
            accuracies.append(float(hits.double().mean()))
    assert result.events[-1]["client_validation_accuracy"] == pytest.approx(accuracies)
    assert result.events[-1]["client_validation_accuracy_mean"] == pytest.approx(sum(accuracies) / 5)


def test_a_resumed_run_goes_on_with_its_counts(tmp_path: Path) -> None:
    stores = Checkpoints(tmp_path, 0, 1)

    def save(progress: Progress) -> float:
        stores.save(progress, {})
        return 0.0

    loop, _ = loop_of("fedavg", save=save)
    theta = Layout.of(tiny_net(classes=4)).flatten(tiny_net(classes=4).double())
    first = loop.start(theta, 2)
    plan = loop.algorithm.configure_round(first.state, first.clock, loop.context)
    assert plan is not None
    loop.step(first, plan)
    loaded = Checkpoints(tmp_path, 0, 1).latest(loop.algorithm.records)
    assert loaded is not None
    again, later = loop_of("fedavg")
    again.exchange.restore(loaded[0].client_memories)
    again.run(loaded[0])
    _, _, whole = run("fedavg")
    for field in WANTED:
        assert later[-1][field] == whole[-1][field]


def test_without_held_out_rows_nothing_is_said() -> None:
    rig = make_rig(ALGORITHMS["fedavg"](), float_data(), tiny_net())
    rig.run(2)
    assert not [name for name in rig.events[-1] if "validation" in name]
    assert replace(data(), held_out=()).validation_parts == ()
