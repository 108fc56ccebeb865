"""The time of a round by kind of operation: PyTorch's profiler on the plain loop and on ssfl, one thread each.

Shows self CPU time of operations by kind. The rest is Python, dispatch and the profiler itself, so the round is also
timed without the profiler. The malloc setting cannot be undone in a process, so each contestant runs in a new one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bare import PlainLoop
from benchmarks.figures import Figure, options, publish
from benchmarks.ours import Ours, Way
from benchmarks.workload import Workload, workload

CONTESTANTS = ("plain loop", "ssfl, sequential")
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("convolution, backward", ("aten::convolution_backward", "_WinogradBackward")),
    (
        "convolution, forward",
        ("aten::mkldnn_convolution", "aten::thnn_conv2d", "aten::_slow_conv2d", "_Winograd"),
    ),
    ("normalisation, pooling, activation at once", ("_NormAct",)),
    ("normalisation", ("aten::native_group_norm", "aten::native_batch_norm", "aten::native_layer_norm")),
    ("pooling", ("aten::max_pool2d", "aten::_adaptive_avg_pool2d", "aten::avg_pool2d", "aten::mean")),
    ("activation", ("aten::clamp_min", "aten::relu", "aten::threshold_backward")),
    ("linear", ("aten::addmm", "aten::mm", "aten::linear", "aten::bmm")),
    ("loss", ("aten::_log_softmax", "aten::nll_loss", "aten::log_softmax")),
    ("gather of batches", ("aten::index", "aten::index_select", "aten::randperm", "aten::gather")),
    (
        "filling and copying",
        ("aten::copy_", "aten::fill_", "aten::zero_", "aten::cat", "aten::clone", "aten::empty"),
    ),
    ("sums and steps", ("aten::add", "aten::mul", "aten::div", "aten::sub", "aten::sum", "aten::_foreach")),
)
"""Kinds of operations by prefixes of their names; the first match counts."""


def round_of(contestant: str, work: Workload) -> Callable[[], object]:
    """A round of one contestant."""
    if contestant == CONTESTANTS[0]:
        return PlainLoop(work).round
    return Ours(work, Way("sequential")).round


def kind_of(operation: str) -> str:
    """The kind of a profiled operation."""
    return next((kind for kind, starts in KINDS if operation.startswith(starts)), "other operations")


def measured(contestant: str, work: Workload, rounds: int) -> dict[str, float]:
    """Milliseconds per round by kind, profiled; and of the whole round, with and without the profiler."""
    torch.set_num_threads(1)
    one_round = round_of(contestant, work)
    for _ in range(2):
        one_round()
    plain = statistics.median(_seconds(one_round) for _ in range(rounds))
    kinds: dict[str, float] = {}
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            one_round()
    watched = (time.perf_counter() - start) / rounds
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "_NormAct", "_Winograd")):  # PyTorch's operations and our kernels
            kind = kind_of(event.key)
            kinds[kind] = kinds.get(kind, 0.0) + event.self_cpu_time_total / rounds / 1e3
    return {**kinds, "whole round, not profiled": 1e3 * plain, "whole round, profiled": 1e3 * watched}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def figures(model: str, rounds: int) -> list[Figure]:
    """Both contestants, each in a new process."""
    found = []
    for contestant in CONTESTANTS:
        words = ["--model", model, "--rounds", str(rounds), "--contestant", contestant]
        command = [sys.executable, "-m", "benchmarks.bench_profile", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    before, after = found
    rows = []
    for kind in sorted(before | after, key=lambda k: -before.get(k, 0.0)):
        theirs, ours = before.get(kind, 0.0), after.get(kind, 0.0)
        rows.append(Figure(f"{model}: {CONTESTANTS[0]}: {kind}", theirs, "ms", n=rounds))
        ratio = theirs / ours if ours else None
        rows.append(Figure(f"{model}: {CONTESTANTS[1]}: {kind}", ours, "ms", CONTESTANTS[0], ratio, rounds))
    return rows


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=("cnn", "resnet18", "tiny"), default="cnn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--contestant", choices=CONTESTANTS, help="only this one, in this process, as JSON")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    rounds = min(chosen.rounds, 3) if chosen.quick else chosen.rounds
    if chosen.contestant is not None:
        print(json.dumps(measured(chosen.contestant, workload(chosen.model), rounds)))
        return
    path: Path | None = chosen.json
    publish(figures(chosen.model, rounds), path)


if __name__ == "__main__":
    main()
