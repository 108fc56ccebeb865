"""ssfl as a contestant: FedAvg through the loop, the simulator and an executor, as in a user's run.

Evaluation is off on clients (`evaluate=()`) and never due on the server, because the compared round does not include
it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.auto_choice import auto_choice, choice_text
from benchmarks.gate import Gate, contestant_options
from benchmarks.workload import (
    BATCH_SIZE,
    CLASSES,
    LR,
    SEED,
    Workload,
    client_arrays,
    hidden_width,
    workload,
)
from ssfl.algorithms.base import Algorithm, ClientReply, ClientTask, RoundPlan, ServerContext
from ssfl.algorithms.fedavg import FedAvg
from ssfl.assemble.execution import Choice
from ssfl.assemble.executors import ROWS
from ssfl.config import EngineConfig
from ssfl.config.schema import ExecutorName
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation as Data
from ssfl.data.preprocess import Preprocess
from ssfl.engine.accounting.ledger import Meter
from ssfl.engine.central_test import CentralTest
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.malloc import give_back_freed_memory, keep_freed_memory
from ssfl.engine.executors.step_times import Form
from ssfl.engine.executors.timing import time_steps
from ssfl.engine.loop import RoundLoop
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.progress import Progress
from ssfl.models import build_model
from ssfl.models.small import MLP, SmallCNN
from ssfl.native import available

ENDLESS = 10**9


def our_module(work: Workload) -> nn.Module:
    """The same function as the workload's network, as in ssfl (its `cnn` pools before ReLU, with equal results)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if work.network == "tiny":
            pools = (False, True)
            return SmallCNN(work.shape, CLASSES, (8, 16), pools, 0, lambda c: nn.GroupNorm(4, c))
        if work.network == "scale":
            return MLP(work.shape, CLASSES, (hidden_width(work.parameters),) * 2)
        norm = "group2" if work.network == "resnet18" else "group"
        return build_model(work.network, CLASSES, work.shape, norm)


def our_data(work: Workload) -> Data:
    """The clients' arrays as a federation, with the same rows and no augmentation."""
    arrays = client_arrays(work)
    total = work.clients * work.examples
    names = tuple(map(str, range(CLASSES)))
    x = arrays.x.view(total, *work.shape)
    table = Arrays(work.name, CLASSES, names, x, arrays.y.view(total), arrays.test_x, arrays.test_y)
    parts = torch.split(torch.arange(total), work.examples)
    tests = torch.arange(len(arrays.test_y)).tensor_split(work.clients)
    return Data(table, Preprocess((0.0,), (1.0,)), parts, tests)


def form_here(work: Workload, module: nn.Module, convolutions: str = "auto") -> Form:
    """The choice of `engine.memory_format=auto` on this machine."""
    times = time_steps(module, work.shape, BATCH_SIZE, block=1, native=available())
    return times.form(convolutions=convolutions)


def choice_here(work: Workload, module: nn.Module, way: Way) -> Choice:
    """A named executor with its block and workers; the memory format and convolutions that `auto` chooses here."""
    kernels = "native" if available() else "torch"
    block = work.cohort if way.executor == "batched" else 1
    form = Form("contiguous", "direct")
    if block == 1:
        form = form_here(work, module, "direct" if way.precision == "bf16" else way.convolutions)
    assert way.executor != "auto"
    return Choice(way.executor, way.workers, block, *form, kernels)


@dataclass(frozen=True)
class Way:
    """How a contestant computes."""

    executor: ExecutorName | Literal["auto"]
    workers: int = 1
    precision: str = "fp32"
    convolutions: str = "auto"


def our_tasks(algorithm: Algorithm[Any]) -> Mapping[str, ClientTask]:
    """A method's tasks without their tests on the client's split."""
    return {name: replace(task, evaluate=()) for name, task in algorithm.tasks.items()}


@dataclass
class TimedExchange:
    """A simulator that records the clients' seconds of the last round, for the share outside their work."""

    simulator: Simulator
    client_seconds: float = 0.0

    def __call__(self, plan: RoundPlan, meter: Meter) -> Iterator[ClientReply]:
        self.client_seconds = 0.0
        for reply in self.simulator(plan, meter):
            self.client_seconds += reply.report.wall_seconds
            yield reply

    def client_memories(self) -> ClientMemories:
        """The simulator's."""
        return self.simulator.client_memories()

    def restore(self, memories: ClientMemories) -> None:
        """Through the simulator."""
        self.simulator.restore(memories)


class Ours:
    """A run, one round at a time."""

    def __init__(self, work: Workload, way: Way, algorithm: Algorithm[Any] | None = None) -> None:
        """algorithm: None means FedAvg."""
        module, data = our_module(work), our_data(work)
        keep_freed_memory(
            way.workers if way.executor in ("threads", "auto") else 1, 4 * Layout.of(module).size
        )
        fit = FitSpec(1, BATCH_SIZE, ExponentialDecay(LR, 1.0))
        algorithm = FedAvg(fit, work.cohort) if algorithm is None else algorithm
        if way.executor == "auto":
            choice = auto_choice(work, module, data, algorithm, way.workers)
        else:
            choice = choice_here(work, module, way)
        self.choice = choice
        give_back_freed_memory()  # as in `ssfl run`: memory freed after making data and measuring
        arithmetic = Arithmetic(
            way.precision,
            channels_last=choice.memory_format != "contiguous",
            native=choice.kernels == "native",
            mixed=choice.memory_format == "mixed",
            winograd=choice.convolutions == "winograd",
        )
        data = data.laid_out(arithmetic.channels_last)
        self.runner = ClientRunner(module, data, our_tasks(algorithm), SEED, arithmetic=arithmetic)
        engine = replace(EngineConfig(), **asdict(choice))
        self.executor = ROWS[choice.executor].build(self.runner, engine)
        counts = {k: data.examples(k) for k in range(data.num_clients)}
        context = ServerContext(self.runner.layout, counts, SEED)
        self.exchange = TimedExchange(Simulator(self.executor))
        examiner = CentralTest(self.executor, data)
        self.loop = RoundLoop(
            algorithm, context, self.exchange, examiner, _ignored, _unsaved, test_every=ENDLESS
        )
        self.progress = self.loop.start(self.runner.layout.flatten(module), ENDLESS)
        self.plan = algorithm.configure_round(self.progress.state, self.progress.clock, context)

    def round(self) -> float:
        """One round and the plan of the next one; returns the seconds."""
        assert self.plan is not None
        start = time.perf_counter()
        self.progress, self.plan = self.loop.step(self.progress, self.plan)
        self.loop.progress = self.progress  # the previous progress is freed
        return time.perf_counter() - start

    def accuracy(self) -> float:
        """Accuracy of the global model on the test set."""
        theta = self.loop.algorithm.weights_to_evaluate(self.progress.state, self.loop.context)
        assert theta is not None
        return float(self.executor.predict(theta)[1].double().mean())


def _ignored(event: object) -> None:
    """Events go nowhere."""


def _unsaved(progress: Progress) -> float:
    """No checkpoints."""
    return 0.0


def main() -> None:
    """One executor as a contestant."""
    parser = contestant_options("ssfl")
    names = ["sequential", "threads", "batched", "processes", "auto"]
    parser.add_argument("--executor", choices=names, default="threads")
    parser.add_argument("--threads", type=int, default=1, help="threads of one step (sequential)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--convolutions", choices=["auto", "direct"], default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = workload(options.workload)
    ours = Ours(work, Way(options.executor, options.cores, options.precision, options.convolutions))
    torch.set_num_threads(options.threads)
    gate = Gate(*options.gate)
    if options.executor == "auto":
        gate.note(choice_text(ours.choice))
    try:
        gate.serve(ours.round, ours.accuracy)
    finally:
        ours.executor.close()


if __name__ == "__main__":
    main()
