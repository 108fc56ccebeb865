"""What is measured at K clients' weights at once: tests on their own splits, and saliencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientContext, ClientTask, Probe, Work
from ssfl.core.metrics import Tally
from ssfl.core.saliency import Saliency, gradient, snip
from ssfl.engine.block_batches import probe_steps, test_steps
from ssfl.engine.block_net import BlockNet
from ssfl.engine.device_block import IGNORED
from ssfl.engine.local import ClientRunner

TEST_BATCH = 32
"""Examples a client in one forward pass of a block."""

BLOCK_SALIENCIES: Mapping[Saliency, Callable[[Tensor, Tensor], Tensor]] = {
    gradient: lambda g, theta: g,
    snip: lambda g, theta: (g * theta).abs(),
}
"""Saliencies that are a function of the loss's gradient and the weights, both [K, T]; others go client by client."""


def block_tallies(
    runner: ClientRunner, net: BlockNet, task: ClientTask, work: Work, clients: Sequence[int]
) -> list[Tally]:
    """Each client's model, a row of work["theta"] [K, P], on its own test split; [K]."""
    size, hooks = net.layout.trained_size, {name: t for name, t in work.items() if name != "theta"}
    theta = work["theta"]
    own = theta[:, :size]
    effective = task.effective_weights(own, hooks)
    seen = theta if effective is own else torch.cat([effective, theta[:, size:]], dim=1)
    sizes = [len(runner.federation.test_parts[c]) for c in clients]
    at = sorted(range(len(clients)), key=lambda k: -sizes[k])
    net.module.eval()
    with torch.inference_mode():
        found = _predicted(runner, net, seen[at], [clients[k] for k in at])
    classes = runner.federation.arrays.num_classes
    tallies = {}
    for row, k in enumerate(at):
        losses, hits, labels = (tensor[row, : sizes[k]] for tensor in found)
        tallies[k] = Tally.of(losses, hits, labels, classes)
    return [tallies[k] for k in range(len(clients))]


def _predicted(
    runner: ClientRunner, net: BlockNet, theta: Tensor, clients: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, hits and labels [K, n] of clients in order of their splits; n: the largest split."""
    parts = []
    for x, y in test_steps(runner, clients, TEST_BATCH):
        logits, labels = net.logits(theta[: y.shape[1]], x), y.t()
        losses = cross_entropy(logits.mT, labels, reduction="none", ignore_index=IGNORED)
        parts.append((losses, logits.argmax(2) == labels, labels))
    return tuple(_joined([p[i] for p in parts], len(clients)) for i in range(3))  # type: ignore[return-value]


def _joined(parts: Sequence[Tensor], clients: int) -> Tensor:
    """[k, b], k falling -> [K, n] in the host's memory; what no client has is zero."""
    if not parts:
        return torch.zeros(clients, 0)
    out = parts[0].new_zeros(clients, sum(p.shape[1] for p in parts))
    first = 0
    for part in parts:
        out[: len(part), first : first + part.shape[1]] = part
        first += part.shape[1]
    return out.cpu()


def block_saliency(
    runner: ClientRunner, net: BlockNet, probe: Probe, theta: Tensor, contexts: Sequence[ClientContext]
) -> Tensor:
    """Each client's mean saliency over `probe.batches` minibatches at theta [K, P]; [K, T].

    contexts: in order of their examples, most first.
    """
    score = BLOCK_SALIENCIES[probe.saliency]
    size = net.layout.trained_size
    net.module.train(probe.training_mode)
    total = torch.zeros_like(theta[:, :size])
    for rows, batch, _ in probe_steps(runner, contexts, probe, coupled=size < net.layout.size):
        _, found = net.losses_and_gradient(theta[rows], batch)
        total[rows] += score(found, theta[rows, :size])
    return total / probe.batches
