"""Methods, jobs and rigs on which the tests of threads and processes compare them with the sequential executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import Algorithm, ClientTask, Clock, Probe
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.random_masks import ClientwiseRandomMask
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values
from ssfl.core.saliency import SNIP
from ssfl.engine.client.job import ClientJob, Outcome
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.sequential import SequentialExecutor
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

SIZES = (11, 9, 1, 5, 6) * 4
FIT = FitSpec(1, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, clip_norm=10.0)
WILD = FitSpec(1, 8, ExponentialDecay(1e30, 1.0))
METHODS: Mapping[str, Callable[[], Algorithm[Any]]] = {
    "fedavg": lambda: FedAvg(FIT, 7),
    "fedavg_ft": lambda: FedAvg(FIT, 3, fine_tune=FIT),
    "ssfl": lambda: SSFL(FIT, 7, Discovery(Probe(SNIP), 0.3)),
    "random_clientwise": lambda: ClientwiseRandomMask(FIT, 7, 0.3),
    "dispfl": lambda: DisPFL(FIT, 0.3, neighbour_count=3),
    "sparsyfed": lambda: SparsyFed(FIT, 7, 0.3),
    "sparsyfed_dense": lambda: SparsyFed(FIT, 7, 0.3, prune_activations=False),
    "local": lambda: LocalTraining(FIT),
    "wild": lambda: FedAvg(WILD, 7),
}


@dataclass
class Named:
    """One method's view of an executor for several methods: phases have the method's name as prefix."""

    inner: Executor
    name: str

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def run(self, jobs: Sequence[ClientJob]) -> Iterator[Outcome]:
        return self.inner.run([replace(j, phase=f"{self.name}/{j.phase}") for j in jobs])

    def predict(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.predict(theta)

    def close(self) -> None:
        self.inner.close()


def tasks_of_all() -> dict[str, ClientTask]:
    """The tasks of all methods, for one executor."""
    return {f"{name}/{phase}": task for name, make in METHODS.items() for phase, task in make().tasks.items()}


def runner_of(tasks: Mapping[str, ClientTask]) -> ClientRunner:
    return make_runner(float_data(SIZES), tiny_net("batch"), tasks, dtype=torch.float32)


def rig_of(name: str, executor: Executor) -> Rig:
    return make_rig(
        METHODS[name](),
        float_data(SIZES),
        tiny_net("batch"),
        dtype=torch.float32,
        executor=Named(executor, name),
    )


def run_rig(rig: Rig) -> tuple[Any, Mapping[int, Mapping[str, Tensor]]]:
    progress = rig.loop.run(rig.loop.start(rig.theta, 2))
    return progress.state, rig.states()


def check_same_run(name: str, runner: ClientRunner, executor: Executor) -> None:
    """A method's two rounds through `executor`: model, memories and events have the bits of the sequential executor."""
    here, there = rig_of(name, SequentialExecutor(runner)), rig_of(name, executor)
    (state, memories), (other_state, other_memories) = run_rig(here), run_rig(there)
    ours = here.algorithm.weights_to_evaluate(state, here.context)
    theirs = there.algorithm.weights_to_evaluate(other_state, there.context)
    assert (ours is None) == (theirs is None)
    assert ours is None or (theirs is not None and ours.equal(theirs))
    assert memories.keys() == other_memories.keys()
    for client, memory in memories.items():
        assert memory.keys() == other_memories[client].keys()
        assert all(memory[k].equal(other_memories[client][k]) for k in memory)
    for one, two in zip(here.events, there.events, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in two.items() if "seconds" not in k
        }


def echo_jobs(phase: str, clients: Sequence[int], size: int = 40) -> list[ClientJob]:
    weights = torch.arange(float(size))
    return [ClientJob(phase, c, (Payload({"w": DenseValues(weights + c)}),), Clock(1, 1)) for c in clients]


def check_echoes(outcomes: Sequence[Outcome], clients: Sequence[int], size: int = 40) -> None:
    assert [o.reply.client for o in outcomes] == list(clients)
    for client, outcome in zip(clients, outcomes, strict=True):
        doubled = 2 * (torch.arange(float(size)) + client)
        assert dense_values(outcome.reply.payload.parts["w"]).equal(doubled)
        assert outcome.state is not None
        assert outcome.state["memory"].equal(doubled)
