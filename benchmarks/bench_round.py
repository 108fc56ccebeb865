"""One round of the workload: ssfl, plain PyTorch, other frameworks and the limit, measured alternately in one run."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.contest import Contestant, Score, contest, python_contestant
from benchmarks.figures import Figure, options, paired_ratio, publish, times
from benchmarks.machine import has_bf16_arithmetic
from benchmarks.overhead import overhead
from benchmarks.peers.install import PEERS, install, peer_contestants
from benchmarks.workload import Workload, workload

OURS = "ssfl, 2 threads"
SEQUENTIAL = "ssfl, sequential"
ALONE = "ssfl, one client over 2 threads"
PROCESSES = "ssfl, 2 processes"
BF16 = "ssfl, 2 threads, bf16"
DIRECT = "ssfl, 2 threads, direct convolutions"
BATCHED = "ssfl, 32 clients a block"
AUTO = "ssfl, auto"
AUTO_ALONE = "ssfl, auto, 1 core"
BARE_LOOP = "plain loop, 1 thread"
BARE = "plain, 2 processes"
LIMIT = "convolutions and products alone, 2 processes"
MODELS = ("cnn", "resnet18", "tiny")
QUICK = {"resnet18": "resnet18-quick"}
"""Workloads of --quick: a round of two clients with two minibatches each."""
TURNS = {"cnn": 6, "resnet18": 4, "tiny": 6}
BURSTS = {"cnn": 4, "resnet18": 1, "tiny": 4}
"""Rounds per turn; a round of ResNet18 takes seconds, so a pause before it has no visible effect."""


def contestants(
    work: Workload, peers: Sequence[str], quick: bool = False, kernels: bool = True
) -> list[Contestant]:
    """The contestants: plain PyTorch, ssfl, the limit, and installed peers; quick: only those with target values.

    kernels: False runs ssfl as if it were installed without a C compiler.
    """
    name = work.name
    ours = partial(python_contestant, module="benchmarks.ours", kernels=kernels)
    if work.network == "tiny":
        return [
            python_contestant(BARE_LOOP, "benchmarks.bare", [name, "--cores", "1"]),
            ours(SEQUENTIAL, arguments=[name, "--executor", "sequential"]),
            ours(BATCHED, arguments=[name, "--executor", "batched"]),
            ours(AUTO_ALONE, arguments=[name, "--executor", "auto", "--cores", "1"]),
            ours(AUTO, arguments=[name, "--executor", "auto"]),
        ]
    some = [
        python_contestant(BARE_LOOP, "benchmarks.bare", [name, "--cores", "1"]),
        python_contestant(BARE, "benchmarks.bare", [name]),
        ours(SEQUENTIAL, arguments=[name, "--executor", "sequential"]),
        ours(AUTO, arguments=[name, "--executor", "auto"]),
        ours(OURS, arguments=[name, "--executor", "threads"]),
        ours(ALONE, arguments=[name, "--executor", "sequential", "--threads", "2"]),
    ]
    if kernels:
        direct = [name, "--executor", "threads", "--convolutions", "direct"]
        some += [
            ours(PROCESSES, arguments=[name, "--executor", "processes"]),
            ours(DIRECT, arguments=direct),
            python_contestant(LIMIT, "benchmarks.limit", [name]),
        ]
    if kernels and has_bf16_arithmetic():
        some.append(ours(BF16, arguments=[name, "--executor", "threads", "--precision", "bf16"]))
    if quick:
        # Before its first round each of ours measures steps: 15 s for ResNet18 with AVX2.
        with_targets = {BARE, OURS} if name in QUICK.values() else {BARE, OURS, ALONE, LIMIT}
        some = [c for c in some if c.name in with_targets or (c.name in (BARE_LOOP, AUTO) and not kernels)]
    return some + peer_contestants(work, peers)


def figures(work: Workload, scores: dict[str, Score]) -> list[Figure]:
    """Seconds, CPU seconds, images per second and memory of every contestant; and the ratios of ssfl."""
    rows = []
    for name, score in scores.items():
        label = f"{work.name}: {name}" + (f" ({score.note})" if score.note else "")
        rows.append(times(f"{label}: round", score.seconds))
        rows.append(times(f"{label}: round, CPU", score.cpu_seconds))
        if score.first_seconds:
            rows.append(times(f"{label}: round after a pause", score.first_seconds))
        rate = work.round_examples / statistics.median(score.seconds)
        rows.append(Figure(f"{label}: images", rate, "1/s", n=len(score.seconds)))
        rows.append(Figure(f"{label}: peak memory", score.peak_bytes / 1e9, "GB"))
        rows.append(Figure(f"{label}: start", score.start_seconds, "s"))
        if score.accuracy == score.accuracy:  # the limit does not train
            rows.append(Figure(f"{label}: test accuracy", score.accuracy, "share"))
    for ours in (OURS, ALONE, SEQUENTIAL, BF16, BATCHED, AUTO, AUTO_ALONE):
        if ours in scores:
            rows += [_against(work, ours, other, scores) for other in scores if other not in (ours, LIMIT)]
    if OURS in scores and LIMIT in scores:
        share = paired_ratio(scores[OURS].seconds, scores[LIMIT].seconds)
        rows.append(Figure(f"{work.name}: {OURS}: share of the limit", share, "share", LIMIT, share))
    return rows


def _against(work: Workload, ours: str, other: str, scores: dict[str, Score]) -> Figure:
    """Our seconds compared with another contestant's, per turn."""
    row = times(f"{work.name}: {ours}: round", scores[ours].seconds)
    ratio = paired_ratio(scores[ours].seconds, scores[other].seconds)
    return Figure(row.name, row.value, row.unit, other, ratio, row.n, row.spread)


def run(
    names: Sequence[str], turns: int | None, peers: Sequence[str], quick: bool, kernels: bool = True
) -> list[Figure]:
    """All models, one after the other."""
    rows: list[Figure] = []
    for model in names:
        work = workload(QUICK.get(model, model) if quick else model)
        some = contestants(work, peers, quick, kernels)
        print(f"{work.name}: {', '.join(c.name for c in some)}", file=sys.stderr)
        burst = min(BURSTS[model], 2) if quick else BURSTS[model]
        rows += figures(work, contest(some, turns or TURNS[model], burst))
        if kernels and model != "tiny" and work.name not in QUICK.values():
            rows += overhead(work, 2 if quick else (turns or TURNS[model]) * 2 * BURSTS[model])
    return rows


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument(
        "--turns", type=int, help="turns per contestant (default: 6 of 4 rounds; resnet18: 4 of one round)"
    )
    parser.add_argument("--peers", nargs="*", choices=[*PEERS], default=None, help="default: all installed")
    parser.add_argument(
        "--without-kernels", action="store_true", help="ssfl as if installed without a C compiler; no limit"
    )
    parser.add_argument("--install-peers", action="store_true", help="create the peers' environments first")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    torch.set_num_threads(1)
    names = list(MODELS) if chosen.model == "all" else [chosen.model]
    peers = list(PEERS) if chosen.peers is None else chosen.peers
    if chosen.quick:
        names = ["cnn", "tiny"] if chosen.model == "all" else names
        peers = [] if chosen.peers is None else peers
    if chosen.install_peers:
        for peer in peers:
            install(peer)
    turns = chosen.turns or (2 if chosen.quick else None)
    kernels = not chosen.without_kernels
    publish(run(names, turns, peers, chosen.quick, kernels), chosen.json, kernels)


if __name__ == "__main__":
    main()
