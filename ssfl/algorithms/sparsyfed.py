"""SparsyFed: sparse adaptive federated training (Guastella et al., ICLR 2025, arXiv 2504.05153).

Clients train v; the network's weights are sign(v) * |v| ** beta. Weight gradients use pruned activations, and an upload
keeps the global top-k of |v|. The server averages all values, so its model has the union of the supports.
`docs/algorithms/sparsyfed.md` lists the differences from the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import (
    MASK,
    THETA,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    ReplyPart,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, broadcast, dense_mean
from ssfl.algorithms.method import Method, Recipe
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
from ssfl.core.payloads import DenseValues, Part, Payload, dense_values, pack_sparse
from ssfl.core.power import PowerLayers
from ssfl.core.rng import stream
from ssfl.settings import setting

POWER = "power"
"""Name in `Work` of the coordinates [T] (bool) that are re-parameterised."""
THRESHOLDS = "thresholds"
"""Name in `Work` of the activation thresholds, one a prunable tensor (linear layers do not use theirs)."""


def power_training(fit: FitSpec, density: float, layers: PowerLayers, prune_activations: bool) -> ClientTask:
    """Receive sparse v, train v with SGD without a mask, send the global top-k of v.

    The mask in the work is the received support, for counting FLOPs: zero weights of power layers stay zero, because
    their gradient is zero.
    """
    return ClientTask(
        partial(_receive_powers, layers),
        partial(_send_largest, density),
        fit=fit,
        evaluate=("trained",),
        mask_stage="unapplied",
        effective_weights=partial(_effective_weights, layers),
        objective=partial(_objective, layers),
        prepare=partial(_with_pruned_activations, layers.plain_layers) if prune_activations else None,
        updates=(THRESHOLDS,),
        reply_parts={WEIGHTS: ReplyPart("sparse")},
    )


def _with_pruned_activations(plain_layers: tuple[str, ...], module: nn.Module) -> nn.Module:
    """The network with layers that prune activations in the weight gradient."""
    return with_pruned_activations(module, plain_layers)


def _receive_powers(
    layers: PowerLayers, inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """v [P], the re-parameterised coordinates, and unset thresholds."""
    theta = dense_values(inbox[0].parts[WEIGHTS])
    size = context.layout.trained_size
    thresholds = theta.new_full((len(context.layout.prunable_segments),), UNSET)
    power = layers.coordinates(context.layout).to(theta.device)
    return {THETA: theta, MASK: theta[:size] != 0, POWER: power, THRESHOLDS: thresholds}, state


def _effective_weights(layers: PowerLayers, theta: Tensor, work: Work) -> Tensor:
    """sign(v) * |v| ** beta in power layers."""
    return layers.effective(theta, work[POWER])


def _objective(
    layers: PowerLayers, net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None
) -> Tensor:
    """Mean cross-entropy; passes each convolution its threshold, which the first batch sets in place."""
    thresholds = {}
    for i, (name, _, _) in enumerate(net.layout.prunable_segments):
        layer = name.rpartition(".")[0]
        if isinstance(net.module.get_submodule(layer), SparseGradientConvolution):
            thresholds[f"{layer}.{THRESHOLD}"] = work[THRESHOLDS][i]
    seen = _effective_weights(layers, theta, work)
    return cross_entropy(net.logits(seen, batch[0], statistics or {}, thresholds), batch[1])


def _send_largest(
    density: float, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send the round(density * N) largest |v| over all prunable weights, with their mask."""
    scores = context.layout.take_prunable(work[THETA]).abs()
    bits = top_k_mask(scores, round(density * scores.numel()))
    part = pack_sparse(work[THETA], context.layout.expand_mask(bits))
    return Payload({WEIGHTS: part}, context.client), state


@dataclass(frozen=True)
class SparsyFedState:
    """The global v [P]; zero where no client of the last round kept a value."""

    theta: Tensor


@dataclass(frozen=True)
class SparsyFed:
    """Train re-parameterised weights, prune activations and uploads, average by n_k."""

    fit: FitSpec
    per_round: int
    density: float
    """Share of prunable weights in an upload, (0, 1]; the server's union of uploads is denser."""
    layers: PowerLayers = field(default_factory=PowerLayers)
    prune_activations: bool = True
    reinitialise: bool = True
    """Draw the initial v as in the authors' code; False: use the given model as v."""

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": power_training(self.fit, self.density, self.layers, self.prune_activations)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (SparsyFedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> SparsyFedState:
        """The initial v [P]."""
        if not self.reinitialise:
            return SparsyFedState(theta)
        return SparsyFedState(self.layers.initialised(theta, context.layout, stream(context.seed, "power")))

    def configure_round(
        self, state: SparsyFedState, clock: Clock, context: ServerContext
    ) -> RoundPlan | None:
        """Sends v to a sampled cohort, as sparse values if that is smaller."""
        if clock.round > clock.total:
            return None
        payload = Payload({WEIGHTS: _smallest_part(state.theta, support(state.theta, context.layout))})
        return broadcast("train", sample_clients(context, self.per_round, clock), payload, clock)

    def aggregate(
        self, state: SparsyFedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> SparsyFedState:
        """The n_k-weighted mean of v, including zeros; it is not pruned."""
        return replace(state, theta=dense_mean(replies, plan, context))

    def weights_to_evaluate(self, state: SparsyFedState, context: ServerContext) -> Tensor | None:
        """The effective weights [P]."""
        size = context.layout.trained_size
        power = self.layers.coordinates(context.layout).to(state.theta.device)
        return torch.cat([self.layers.effective(state.theta[:size], power), state.theta[size:]])

    def global_mask(self, state: SparsyFedState, context: ServerContext) -> Tensor | None:
        """The support [P] of the global model: the union of the last uploads."""
        return support(state.theta, context.layout)


def support(theta: Tensor, layout: Layout) -> Tensor:
    """The mask [P] (bool) of non-zero prunable weights and all coordinates that cannot be pruned."""
    return layout.expand_mask(layout.take_prunable(theta) != 0)


def _smallest_part(theta: Tensor, mask: Tensor) -> Part:
    """theta [P] as dense or sparse values, whichever needs fewer bytes."""
    sparse, dense = pack_sparse(theta, mask), DenseValues(theta)
    return sparse if sparse.nbytes < dense.nbytes else dense


@dataclass(frozen=True)
class Settings:
    """Settings of `algorithm=sparsyfed`; `preset=sparsyfed` is the authors' recipe."""

    beta: float = setting(1.25, "exponent of the re-parameterisation; 1: ordinary weights", at_least=1)
    prune_activations: bool = setting(True, "prune activations in the weight gradient")


def build(settings: Settings, recipe: Recipe) -> SparsyFed:
    """SparsyFed from its settings and the recipe (`algorithm=sparsyfed`). Raises SettingError if it keeps no weight."""
    size = recipe.layout.prunable_size
    recipe.check_keeps(round(recipe.density * size), size)
    return SparsyFed(
        recipe.fit,
        recipe.per_round,
        recipe.density,
        layers=PowerLayers(settings.beta),
        prune_activations=settings.prune_activations,
    )


METHOD = Method(build, lambda settings: "SparsyFed", Settings, reads=("density",))
