"""The paper's round on a GPU: ResNet18, 10 clients of 500 images, 5 local epochs, batch 16; per executor and precision.

Seconds, images per second, share of the card's measured matrix rate, memory, the projected time of 999 rounds, and a
table of the slowest operations. Images are random, because speed does not depend on what is learned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.figures import Figure, options, publish, times
from ssfl.algorithms.base import Clock
from ssfl.algorithms.dense import WEIGHTS
from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import DenseValues, Payload
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation
from ssfl.data.preprocess import Preprocess
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.device import CPU, device_facts, set_arithmetic
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.models import build_model

ROUNDS_OF_THE_PAPER = 999
COHORT = 10


@dataclass(frozen=True)
class Work:
    """One round's size."""

    model: str
    side: int
    """Side of an image in pixels."""
    images: int
    """Of each client."""
    epochs: int
    rounds: int
    """Measured rounds, after one warm-up round."""
    matrix: int
    """Side of the square matrices for the card's rate."""


PAPER = Work("resnet18", 32, 500, 5, 3, 8192)
QUICK = Work("resnet18", 32, 500, 1, 1, 8192)
TINY = Work("tiny", 8, 6, 1, 1, 64)
CONTESTANTS = ("sequential", "batched, launched", "batched, graph")


def synchronised(device: torch.device) -> float:
    """The time after all earlier work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(device: torch.device, edge: int, dtype: torch.dtype) -> float:
    """FLOP per second of a square matrix product, the best of 5: measured, not the card's specification."""
    a = torch.randn(edge, edge, device=device, dtype=dtype)
    seconds = []
    for _ in range(7):
        start = synchronised(device)
        a @ a
        seconds.append(synchronised(device) - start)
    return 2 * edge**3 / min(seconds[2:])


def network(work: Work) -> nn.Module:
    """The paper's network, or a small one to test this file."""
    if work.model != "tiny":
        return build_model(work.model, num_classes=10, input_shape=(3, work.side, work.side), norm="group")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 10))


def federation(work: Work) -> Federation:
    """Random bytes, cropped and flipped as CIFAR-10 images."""
    draws = torch.Generator().manual_seed(0)
    total = COHORT * work.images
    x = torch.randint(0, 256, (total, 3, work.side, work.side), dtype=torch.uint8, generator=draws)
    y = torch.randint(0, 10, (total,), generator=draws)
    arrays = Arrays("random", 10, tuple("0123456789"), x, y, x[:COHORT].clone(), y[:COHORT].clone())
    parts = tuple(torch.arange(total).view(COHORT, -1))
    return Federation(
        arrays, Preprocess((0.5,), (0.25,), 4, True), parts, tuple(torch.arange(COHORT)[:, None])
    )


def executor_of(name: str, work: Work, precision: str, device: torch.device) -> tuple[Executor, ClientRunner]:
    """A contestant with new objects."""
    set_arithmetic(device, precision)
    spec = FitSpec(work.epochs, 16, ExponentialDecay(0.1, 0.998), weight_decay=5e-4, clip_norm=10.0)
    alone = name == "sequential"
    arithmetic = Arithmetic(precision, channels_last=alone, device=device)
    tasks = FedAvg(spec, COHORT).tasks
    runner = ClientRunner(network(work), federation(work).to(device), tasks, 0, arithmetic=arithmetic)
    if alone:
        return SequentialExecutor(runner), runner
    return BatchedExecutor(runner, COHORT, static=True, graphs=name.endswith("graph")), runner


def jobs(theta: Tensor, phase: str, round_: int) -> list[ClientJob]:
    """The cohort's jobs of one round."""
    payload = Payload({WEIGHTS: DenseValues(theta)})
    clock = Clock(round_, ROUNDS_OF_THE_PAPER)
    return [ClientJob(phase, k, (payload,), clock) for k in range(COHORT)]


def measure(name: str, work: Work, precision: str, device: torch.device, rate: float) -> list[Figure]:
    """One contestant's figures, including the clients' tests and the transfer of weights."""
    executor, runner = executor_of(name, work, precision, device)
    theta = runner.layout.flatten(runner.module).cpu()
    (phase,) = (p for p, t in runner.tasks.items() if t.fit is not None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, flops = [], 0
    for round_ in range(1, work.rounds + 2):
        start = synchronised(device)
        flops = sum(o.reply.report.train_flops for o in executor.run(jobs(theta, phase, round_)))
        seconds.append(synchronised(device) - start)
    label = f"{work.model}, {precision}: {name}"
    row = times(f"{label}: round", seconds[1:])
    images = COHORT * work.images * work.epochs
    rows = [
        row,
        Figure(f"{label}: images", images / row.value, "1/s", n=row.n),
        Figure(f"{label}: model FLOP utilisation", flops / row.value / rate, "share", n=row.n),
        Figure(
            f"{label}: {ROUNDS_OF_THE_PAPER} rounds, projected", ROUNDS_OF_THE_PAPER * row.value, "s", n=row.n
        ),
    ]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        rows.append(Figure(f"{label}: peak memory of the device", peak, "GB"))
        show_profile(lambda: list(executor.run(jobs(theta, phase, 1))))
    executor.close()
    return rows


def show_profile(work: Callable[[], object]) -> None:
    """Print the 15 operations with most device time in one more round."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=15), file=sys.stderr)


def run(work: Work, precisions: Sequence[str], device: torch.device) -> list[Figure]:
    """All contestants in every precision, and the matrix rate of each precision."""
    rows = []
    for precision in precisions:
        set_arithmetic(device, precision)
        rate = matrix_rate(device, work.matrix, torch.bfloat16 if precision == "bf16" else torch.float32)
        rows.append(Figure(f"{precision}: matrix rate of the device", rate / 1e12, "TFLOP/s", n=5))
        for name in CONTESTANTS:
            rows += measure(name, work, precision, device, rate)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """See README.md in this folder and docs/gpu.md."""
    parser = options(__doc__ or "")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny, to test this file"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "tf32", "bf16"], default=["bf16", "tf32", "fp32"]
    )
    chosen = parser.parse_args(words)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu: PyTorch sees no CUDA device here; nothing is measured")
        return
    if chosen.device == "cpu" and not chosen.quick:
        print("bench_gpu: --device cpu is a test of this file and needs --quick; nothing is measured")
        return
    device = CPU if chosen.device == "cpu" else torch.device("cuda", 0)
    work = TINY if device == CPU else QUICK if chosen.quick else PAPER
    print(", ".join(f"{key} {value}" for key, value in device_facts(device).items()))
    publish(run(work, chosen.precision, device), chosen.json)


if __name__ == "__main__":
    main()
