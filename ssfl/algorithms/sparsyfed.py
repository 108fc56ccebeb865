"""SparsyFed: sparse adaptive federated training (Guastella et al., ICLR 2025, arXiv 2504.05153).

Clients train v, of which the network sees sign(v) * |v| ** beta; weight gradients use pruned activations; before the
upload the global top-k of |v| is kept. The server averages plainly, so its model holds the union of the supports.
`docs/algorithms/sparsyfed.md` says what follows the authors' code and what does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, broadcast, dense_mean
from ssfl.core.activation_pruning import (
    THRESHOLD,
    UNSET,
    SparseGradientConvolution,
    with_pruned_activations,
)
from ssfl.core.layout import Layout
from ssfl.core.masks import top_k_mask
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Part, Payload, dense_values, pack_sparse, part_nbytes
from ssfl.core.power import PowerLayers
from ssfl.core.rng import stream

THRESHOLDS = "thresholds"
"""Name in the work of the activation thresholds, one a prunable tensor (linear layers leave theirs alone)."""


@dataclass(frozen=True)
class GeometricDecay:
    """lr * (final_lr / lr) ** (round / rounds): SparsyFed's schedule, constant inside a round.

    Rounds count from 1, so the first is one step down already (0.4961 from 0.5 to 0.01 over 500).
    """

    lr: float
    final_lr: float
    rounds: int

    def __call__(self, round: int, epoch: int) -> float:
        return self.lr * (self.final_lr / self.lr) ** (round / self.rounds)


@dataclass(frozen=True)
class PowerTraining(ClientTask):
    """Sparse v in, SGD on v without a mask, the global top-k of v out.

    `mask` in the work is the received support: what the FLOPs are counted by. Weights of power layers that arrive
    as zeros stay zeros.
    """

    fit: FitSpec = field()
    density: float = field()
    layers: PowerLayers = field(default_factory=PowerLayers)
    prune_activations: bool = True
    evaluate: tuple[str, ...] = ("trained",)
    updates: tuple[str, ...] = (THRESHOLDS,)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Layers whose weight gradient sees pruned activations."""
        return with_pruned_activations(module, self.layers.plain_layers) if self.prune_activations else module

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """v, which coordinates are powers, and fresh thresholds."""
        theta = dense_values(inbox[0].parts[WEIGHTS])
        size = context.layout.trained_size
        thresholds = theta.new_full((len(context.layout.prunable_segments),), UNSET)
        power = self.layers.coordinates(context.layout).to(theta.device)
        return {"theta": theta, "mask": theta[:size] != 0, "power": power, THRESHOLDS: thresholds}

    def effective_weights(self, theta: Tensor, work: Work) -> Tensor:
        """sign(v) * |v| ** beta in power layers."""
        return self.layers.effective(theta, work["power"])

    def objective(
        self, net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None
    ) -> Tensor:
        """Mean cross-entropy; hands each convolution its threshold, which the first batch sets in place."""
        tensors = net.layout.views(self.effective_weights(theta, work)) | dict(statistics or {})
        for i, (name, _, _) in enumerate(net.layout.prunable_segments):
            layer = name.rpartition(".")[0]
            if isinstance(net.module.get_submodule(layer), SparseGradientConvolution):
                tensors[f"{layer}.{THRESHOLD}"] = work[THRESHOLDS][i]
        return cross_entropy(functional_call(net.module, tensors, (batch[0],)), batch[1])

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """The largest |v|, exactly round(density * N) over all prunable weights together, with their mask."""
        scores = context.layout.take_prunable(work["theta"]).abs()
        bits = top_k_mask(scores, round(self.density * scores.numel()))
        part = pack_sparse(work["theta"], context.layout.expand_mask(bits))
        return Payload({WEIGHTS: part}, context.client), state


@dataclass(frozen=True)
class SparsyFedState:
    """The global v [P]; zero where no client of the last round kept anything."""

    theta: Tensor


@dataclass(frozen=True)
class SparsyFed:
    """Train powers, prune activations and uploads, average."""

    fit: FitSpec
    per_round: int
    density: float
    """Share of prunable weights that a client uploads, (0, 1]; the union on the server is denser."""
    layers: PowerLayers = field(default_factory=PowerLayers)
    prune_activations: bool = True
    reinitialise: bool = True
    """Draw the initial v as the authors do; False: take the given model as v."""

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": PowerTraining(self.fit, self.density, self.layers, self.prune_activations)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (SparsyFedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> SparsyFedState:
        """SparsyFed's initial v in the given network."""
        if not self.reinitialise:
            return SparsyFedState(theta)
        return SparsyFedState(self.layers.initialised(theta, context.layout, stream(context.seed, "power")))

    def configure_round(
        self, state: SparsyFedState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """The model to a sampled cohort, with the mask of its non-zeros where that is smaller."""
        if clock.round > clock.total:
            return None
        payload = Payload({WEIGHTS: _smallest_part(state.theta, support(state.theta, context.layout))})
        return broadcast("train", sample_clients(context, self.per_round, clock), payload, clock)

    def aggregate(
        self, state: SparsyFedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> SparsyFedState:
        """FedAvg of v, zeros included; not pruned again."""
        return replace(state, theta=dense_mean(replies, plan, context))

    def weights_to_evaluate(self, state: SparsyFedState, context: ServerContext) -> Tensor | None:
        """The effective weights."""
        size = context.layout.trained_size
        power = self.layers.coordinates(context.layout).to(state.theta.device)
        return torch.cat([self.layers.effective(state.theta[:size], power), state.theta[size:]])

    def global_mask(self, state: SparsyFedState, context: ServerContext) -> Tensor | None:
        """Where the global model is not zero, [P]: the union of the last uploads."""
        return support(state.theta, context.layout)


def support(theta: Tensor, layout: Layout) -> Tensor:
    """[P] bool: the non-zeros of prunable weights, and everything that cannot be pruned."""
    return layout.expand_mask(layout.take_prunable(theta) != 0)


def _smallest_part(theta: Tensor, mask: Tensor) -> Part:
    """theta [P] without indices, or with its mask, whichever takes fewer bytes."""
    sparse, dense = pack_sparse(theta, mask), DenseValues(theta)
    return sparse if part_nbytes(sparse) < part_nbytes(dense) else dense
