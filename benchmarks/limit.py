"""The limit: only a round's convolutions and matrix products, forward and backward, each in its faster layout.

No normalisation, activation, pooling, optimiser, data or aggregation. One process per core, one thread each, freed
memory is kept. oneDNN computes them (as PyTorch's convolution on a CPU); torch.mm is slower on some processors.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gate import Gate, contestant_options
from benchmarks.ours import our_module
from benchmarks.workload import BATCH_SIZE, Workload, workload
from ssfl.engine.compute.malloc import keep_freed_memory

Call = Callable[[], object]
TRIALS = 5


def round_calls(work: Workload) -> list[list[Call]]:
    """The calls of each of a client's steps."""
    module = our_module(work)
    sizes = [len(rows) for rows in torch.split(torch.arange(work.examples), BATCH_SIZE)]
    calls = {size: step_calls(module, torch.randn(size, *work.shape)) for size in set(sizes)}
    return [calls[size] for size in sizes]


def step_calls(module: nn.Module, x: Tensor) -> list[Call]:
    """One call per layer: forward, and the gradients that a training step needs."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((layer, inputs[0], output))

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(note) for m in layers]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    calls: list[Call] = []
    for number, (layer, inputs, output) in enumerate(seen):
        first = number == 0  # the gradient of the images is not needed
        if isinstance(layer, nn.Conv2d):
            calls.append(faster(convolution(layer, inputs, output, f, first) for f in _FORMATS))
        else:
            assert isinstance(layer, nn.Linear)
            calls.append(product(layer, inputs, output, first))
    return calls


_FORMATS = (torch.contiguous_format, torch.channels_last)


def convolution(layer: nn.Conv2d, x: Tensor, y: Tensor, layout: torch.memory_format, first: bool) -> Call:
    """Forward and backward of one convolution in one layout."""
    x, g = (torch.randn_like(t).contiguous(memory_format=layout) for t in (x, y))
    w = layer.weight.detach().contiguous(memory_format=layout)
    how = (list(layer.stride), [1, 1] if layer.padding == (1, 1) else [0, 0], [1, 1], False, [0, 0], 1)

    def call() -> None:
        torch.ops.aten.convolution(x, w, None, *how)
        torch.ops.aten.convolution_backward(g, x, w, None, *how, [not first, True, False])

    return call


def product(layer: nn.Linear, x: Tensor, y: Tensor, first: bool) -> Call:
    """The three matrix products of a linear layer."""
    x, g, w = torch.randn_like(x), torch.randn_like(y), layer.weight.detach()

    def call() -> None:
        torch.nn.functional.linear(x, w)
        g.t() @ x
        if not first:
            g @ w

    return call


def faster(calls: Iterable[Call]) -> Call:
    """The fastest of some calls, by the best of a few trials."""

    def best(call: Call) -> float:
        call()
        seconds = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return min(calls, key=best)


def _serve(pipe: Connection[Any, Any], work: Workload) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    steps = round_calls(work)
    pipe.send("ready")
    while True:
        try:
            clients = pipe.recv()
        except EOFError:
            return
        with torch.no_grad():
            for _ in range(clients):
                for calls in steps:
                    for call in calls:
                        call()
        pipe.send("done")


def main() -> None:
    """The cohort's layers, divided over `--cores` processes."""
    options = contestant_options("only convolutions and matrix products").parse_args()
    work = workload(options.workload)
    fork = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(options.cores):
        ours, theirs = fork.Pipe()
        fork.Process(target=_serve, args=(theirs, work), daemon=True).start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()

    def round_() -> None:
        for number, pipe in enumerate(pipes):
            pipe.send(len(range(number, work.cohort, len(pipes))))
        for pipe in pipes:
            pipe.recv()

    Gate(*options.gate).serve(round_, lambda: float("nan"))


if __name__ == "__main__":
    main()
