"""The input of `bench_codec`: ResNet18's masks and trained updates, computed from a seed as in SSFL.

CIFAR-10 if it is in the data folder (docs/data.md), else the images of `workload.py`. 100 clients, balanced Dirichlet
0.3; GroupNorm; scores of 20 clients on one minibatch of 16 each; three rounds of one client each inside the mask, one
local epoch of SGD with lr 0.1, weight decay 5e-4, gradients clipped to norm 10. The update is that of the third client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.workload import BATCH_SIZE, CLASSES, SEED, client_arrays, workload
from ssfl.algorithms.base import MASK, Clock, Probe
from ssfl.algorithms.masked import SupportMemo, masked_training
from ssfl.algorithms.ssfl import score_saliency
from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count, top_k_mask
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SCORES, DenseValues, MaskedValues, Payload, Support, dense_values
from ssfl.core.saliency import SNIP
from ssfl.data.arrays import Arrays
from ssfl.data.errors import DataError
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import Preprocess, default_preprocess
from ssfl.data.sources import load_arrays
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.models import build_model
from ssfl.native import available

CLIENTS = 100
SCORERS = 20
ROUNDS = 3
FIT = FitSpec(1, BATCH_SIZE, ExponentialDecay(0.1, 0.998), weight_decay=5e-4, clip_norm=10.0)


@dataclass(frozen=True)
class Update:
    """The values that a client received and those that it sends, on one mask."""

    bits: Tensor
    """The mask over prunable weights [N]."""
    before: MaskedValues
    after: MaskedValues

    @property
    def delta(self) -> Tensor:
        """[nnz]."""
        return self.after.values - self.before.values


@dataclass(frozen=True)
class Material:
    """All material."""

    data: str
    layout: Layout
    theta: Tensor
    """The initial model [P]."""
    scores: Sequence[Tensor]
    """Scores of each scoring client [N]."""
    updates: dict[float, Update]
    """By density."""

    @property
    def mean_scores(self) -> Tensor:
        """[N]."""
        return torch.stack(list(self.scores)).mean(0)


def make(data_dir: Path, densities: Sequence[float], scorers: int, rounds: int) -> Material:
    """Compute the material: about half a minute per density on one core for three rounds."""
    federation = _federation(data_dir)
    runner = _runner(federation)
    layout = runner.layout
    theta = layout.flatten(runner.module)
    model = Payload({"w": DenseValues(theta)})
    scores = []
    for client in range(scorers):
        outcome = runner.run(ClientJob("score", client, (model,), Clock(1, rounds)))
        scores.append(dense_values(outcome.reply.payload.parts[SCORES]).clone())
    mean = torch.stack(scores).mean(0)
    updates = {density: _update(runner, theta, mean, density, rounds) for density in densities}
    return Material(federation.arrays.name, layout, theta, scores, updates)


def _update(runner: ClientRunner, theta: Tensor, scores: Tensor, density: float, rounds: int) -> Update:
    layout = runner.layout
    bits = top_k_mask(scores, kept_count(len(scores), density))
    support = Support.of(layout.expand_mask(bits), layout)
    memory = ClientMemory({MASK: bits})
    after = support.pack(theta)
    for round_ in range(1, rounds + 1):
        before = after
        job = ClientJob("train", SCORERS + round_, (Payload({"w": before}),), Clock(round_, rounds), memory)
        part = runner.run(job).reply.payload.parts["w"]
        assert isinstance(part, MaskedValues)
        after = MaskedValues(part.values.clone(), part.support, part.counts)
    return Update(bits, before, after)


def _runner(federation: Federation) -> ClientRunner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module: nn.Module = build_model("resnet18", CLASSES, federation.input_shape)
    tasks = {
        "score": score_saliency(Probe(SNIP, 1, BATCH_SIZE), "examples"),
        "train": masked_training(FIT, SupportMemo()),
    }
    return ClientRunner(module, federation, tasks, SEED, arithmetic=Arithmetic(native=available()))


def _federation(data_dir: Path) -> Federation:
    try:
        arrays = load_arrays("cifar10", data_dir)
    except DataError:
        return _synthetic()
    spec = PartitionSpec("dir", clients=CLIENTS, alpha=0.3, seed=SEED)
    return build_federation(arrays, spec, default_preprocess(arrays))


def _synthetic() -> Federation:
    arrays = client_arrays(workload("resnet18"))
    count = arrays.y.numel()
    x = arrays.x.view(count, *arrays.x.shape[2:])
    names = tuple(map(str, range(CLASSES)))
    table = Arrays("synthetic", CLASSES, names, x, arrays.y.view(-1), arrays.test_x, arrays.test_y)
    rows = torch.split(torch.arange(count), arrays.y.shape[1])
    tests = torch.arange(len(arrays.test_y)).tensor_split(len(rows))
    return Federation(table, Preprocess((0.0,), (1.0,)), rows, tests)
