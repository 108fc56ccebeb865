"""Tests on the clients' own splits, and saliencies, for K clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import ClientContext, ClientTask, Probe, Work
from ssfl.core.metrics import Tally
from ssfl.engine.client.data_source import evaluated_rows
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.batched.batches import probe_steps, test_steps
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.batched.static_steps import IGNORED

TEST_BATCH = 32
"""Examples per client in one forward pass of a block."""


def block_tallies(
    runner: ClientRunner, net: BlockNet, task: ClientTask, work: Work, clients: Sequence[int], when: str
) -> list[dict[str, Tally]]:
    """Each client's model, a row of work["theta"] [K, P], on its own rows, as `ClientRunner.tallies`; [K]."""
    size, hooks = net.layout.trained_size, {name: t for name, t in work.items() if name != "theta"}
    theta = work["theta"]
    seen = theta
    if task.effective_weights is not None:
        seen = torch.cat([task.seen(theta[:, :size], hooks), theta[:, size:]], dim=1)
    sizes = [evaluated_rows(runner.federation, c) for c in clients]
    at = sorted(range(len(clients)), key=lambda k: -sizes[k])
    net.module.eval()
    with torch.inference_mode():
        found = _predicted(runner, net, seen[at], [clients[k] for k in at])
    tallies = {}
    for row, k in enumerate(at):
        own = (tensor[row, : sizes[k]] for tensor in found)
        tallies[k] = runner.split_tallies(when, clients[k], *own)
    return [tallies[k] for k in range(len(clients))]


def _predicted(
    runner: ClientRunner, net: BlockNet, theta: Tensor, clients: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, hits and labels [K, n] of clients sorted by split size; n: the largest split."""
    parts = []
    for x, y in test_steps(runner, clients, TEST_BATCH):
        logits, labels = net.logits(theta[: y.shape[1]], x), y.t()
        losses = cross_entropy(logits.mT, labels, reduction="none", ignore_index=IGNORED)
        parts.append((losses, logits.argmax(2) == labels, labels))
    if not parts:  # no client of this block has a row
        none = torch.zeros(len(clients), 0)
        return none, none.bool(), none.long()
    return tuple(_joined([p[i] for p in parts], len(clients)) for i in range(3))  # type: ignore[return-value]


def _joined(parts: Sequence[Tensor], clients: int) -> Tensor:
    """Tensors [k, b] with decreasing k -> [K, n] in host memory; missing entries are zero."""
    out = parts[0].new_zeros(clients, sum(p.shape[1] for p in parts))
    first = 0
    for part in parts:
        out[: len(part), first : first + part.shape[1]] = part
        first += part.shape[1]
    return out.cpu()


def block_saliency(
    runner: ClientRunner,
    net: BlockNet,
    probe: Probe,
    theta: Tensor,
    contexts: Sequence[ClientContext],
    coupled: bool | None = None,
) -> Tensor:
    """Each client's mean saliency (of the gradient) over `probe.batches` minibatches at theta [K, P]; [K, T].

    Computed without autocast, as by `ClientRunner.probe`.

    contexts: sorted by number of examples, largest first. coupled: whether examples of a minibatch influence each
    other; None: if the network has running statistics.
    """
    score = probe.saliency.of_gradient
    assert score is not None
    size = net.layout.trained_size
    net.module.train(probe.saliency.training_mode)
    total = torch.zeros_like(theta[:, :size])
    apart = size < net.layout.size if coupled is None else coupled
    for rows, batch, _ in probe_steps(runner, contexts, probe, apart):
        _, found = net.losses_and_gradient(theta[rows], batch, nullcontext)
        total[rows] += score(found, theta[rows, :size])
    return total / probe.batches
