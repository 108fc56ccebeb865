"""DisPFL: decentralised sparse training with personal masks (Dai et al., ICML 2022).

Every client has a mask over all trained parameters and a model inside it. In a round a client averages its last model
and those of its neighbours where they overlap, masks the result, trains, publishes its model, and then changes its mask
(drops the smallest weights, grows others). There is no global model.
`docs/algorithms/dispfl.md` lists the differences from the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ssfl.algorithms.base import (
    MASK,
    THETA,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    PeerModel,
    Probe,
    ReplyPart,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS
from ssfl.algorithms.method import Method, Recipe
from ssfl.core.erk import erk_mask
from ssfl.core.evolve import (
    cosine_drop_rate,
    drop_counts,
    drop_smallest,
    grow_largest,
    grow_random,
    trained_spans,
)
from ssfl.core.gossip import overlap_mean
from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SERVER, Payload, SparseValues, dense_values, pack_sparse
from ssfl.core.rng import stream
from ssfl.core.saliency import GRADIENT
from ssfl.core.topology import Topology, neighbours
from ssfl.core.words import check_word
from ssfl.settings import setting

Growth = Literal["gradient", "random", "none"]


@dataclass(frozen=True)
class MaskSearch:
    """How a client's mask changes after each round."""

    drop_rate: float = 0.5
    """Share of kept weights replaced in each tensor after the first round; decreases to 0 along a cosine."""
    grow: Growth = "gradient"
    """"gradient": where |dL/dw| of one batch is largest (the paper); "random" (the published scripts); "none"."""

    def __post_init__(self) -> None:
        check_word("grow", self.grow, Growth)

    def probe(self, batch_size: int) -> Probe | None:
        """The gradient of one training batch after training, in eval mode, not clipped or masked (authors' code)."""
        return Probe(GRADIENT, 1, batch_size) if self.grow == "gradient" else None

    def next_mask(self, mask: Tensor, work: Work, probed: Tensor | None, context: ClientContext) -> Tensor:
        """The mask [P] of the next round, with the same number of coordinates in every tensor as `mask` [P]."""
        if self.grow == "none":
            return mask
        size, spans = context.layout.trained_size, trained_spans(context.layout)
        rate = cosine_drop_rate(self.drop_rate, context.clock.round, context.clock.total)
        counts = drop_counts(mask[:size], rate, spans)
        remaining = drop_smallest(mask[:size], work[THETA][:size], counts, spans)
        if probed is None:
            draws = stream(context.seed, "grow", context.client, context.clock.round)
            grown = grow_random(remaining, counts, spans, draws)
        else:
            grown = grow_largest(remaining, probed, counts, spans)
        next_mask = mask.clone()
        next_mask[:size] = grown
        return next_mask


def gossip_training(search: MaskSearch, fit: FitSpec) -> ClientTask:
    """Receive neighbours' models, train inside the client's own mask, publish the trained model with its mask.

    Weights are masked after each step; the gradient is dense, also for the clipping norm. The client state contains the
    trained model ("values" on "bits" [P], this client's term in the next average) and the mask of the next round
    ("mask" [P]).
    """
    return ClientTask(
        _receive_models,
        partial(_publish, search),
        fit=fit,
        probe=search.probe(fit.batch_size),
        evaluate=("received", "trained"),
        mask_stage="after_step",
        kept_model=_kept_model,
        reply_parts={WEIGHTS: ReplyPart("sparse")},
    )


def _receive_models(
    inbox: Sequence[Payload], state: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    """The overlap mean of the client's own model and its neighbours' models, times the client's mask."""
    received = [sparse_part(p, context.layout) for p in inbox if p.sender != SERVER]
    own = own_part(inbox, state, context)
    state = state if MASK in state else {MASK: own.bits}
    theta = overlap_mean([own, *received]).mul_(state[MASK])
    return {THETA: theta, MASK: state[MASK][: context.layout.trained_size]}, state


def _publish(
    search: MaskSearch, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send the weights with the mask of their training; keep them and the next mask."""
    part = pack_sparse(work[THETA], state[MASK])
    chosen = search.next_mask(state[MASK], work, probed, context)
    memory = {"values": part.values, "bits": part.bits, MASK: chosen}
    return Payload({WEIGHTS: part}, context.client), memory


def _kept_model(state: ClientState) -> Tensor | None:
    """The last trained model [P]."""
    return dense_values(SparseValues(state["values"], state["bits"])) if "values" in state else None


def sparse_part(payload: Payload, layout: Layout) -> SparseValues:
    """A client's model part. Raises ValueError if it does not fit this layout."""
    part = payload.parts[WEIGHTS]
    if not isinstance(part, SparseValues) or part.bits.numel() != layout.size:
        raise ValueError(
            f"from {payload.sender}: expected a model of {layout.size} coordinates with its mask"
        )
    return part


def own_part(inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> SparseValues:
    """The client's last model; in its first round, the model from the server."""
    if "values" in state:
        return SparseValues(state["values"], state["bits"])
    for payload in inbox:
        if payload.sender == SERVER:
            return sparse_part(payload, context.layout)
    raise ValueError(f"client {context.client} has no model: send its initial model first")


@dataclass(frozen=True)
class DisPFLState:
    """The common initial model, the first masks of clients that have not trained, and the clients that have.

    The clients' models are not part of it: plans refer to them by `PeerModel`.
    """

    theta: Tensor
    masks: Mapping[int, Tensor]
    """Client -> its first mask [P], 8 coordinates a byte (uint8)."""
    joined: tuple[int, ...] = ()


def initial_model(theta: Tensor, masks: Mapping[int, Tensor], client: int) -> Payload:
    """The common initial model theta [P] under a client's first mask (packed, as in the state)."""
    bits = np.unpackbits(masks[client].numpy(), count=theta.numel()).view(np.bool_)
    return Payload({WEIGHTS: pack_sparse(theta, torch.from_numpy(bits).to(theta.device))}, client)


@dataclass(frozen=True)
class DisPFL:
    """Decentralised averaging of sparse personal models.

    per_round: None: every client trains in every round (the paper; ten times FedAvg's work if FedAvg's cohort is a
    tenth of the clients). A number: a sampled cohort of that size trains, with the neighbours' last published models,
    so that all methods of a comparison do the same amount of training.
    """

    fit: FitSpec
    density: float
    """Share of all trained parameters kept, (0, 1]; ERK distributes it over tensors."""
    search: MaskSearch = field(default_factory=MaskSearch)
    topology: Topology = "random"
    """"random" (`neighbour_count` others, drawn in each round), "ring", "full"."""
    neighbour_count: int = 10
    different_initial: bool = True
    """Whether each client draws its own ERK mask (the published scripts); False: all share one."""
    erk_power_scale: float = 1.0
    per_round: int | None = None

    def __post_init__(self) -> None:
        check_word("topology", self.topology, Topology)

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": gossip_training(self.search, self.fit)}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (DisPFLState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> DisPFLState:
        """Draws every client's first mask; round 1 averages the common initial model under these masks."""
        if not self.different_initial:
            return DisPFLState(theta, dict.fromkeys(context.clients, self._first_mask(context)))
        return DisPFLState(theta, {client: self._first_mask(context, client) for client in context.clients})

    def _first_mask(self, context: ServerContext, *path: int) -> Tensor:
        generator = stream(context.seed, "mask", *path)
        mask = erk_mask(context.layout, self.density, generator, self.erk_power_scale)
        return torch.from_numpy(np.packbits(mask.numpy()))

    def configure_round(self, state: DisPFLState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """Sends the neighbours' last models to every client (or the cohort), and its initial model to a new one."""
        if clock.round > clock.total:
            return None
        chosen = context.clients if self.per_round is None else sample_clients(context, self.per_round, clock)
        instructions = tuple(Instruction(c, self._inbox(c, state, clock, context)) for c in chosen)
        initial = partial(initial_model, state.theta, state.masks)
        return RoundPlan("train", instructions, clock, publish=True, initial_model=initial)

    def _inbox(
        self, client: int, state: DisPFLState, clock: Clock, context: ServerContext
    ) -> tuple[PeerModel, ...]:
        generator = stream(context.seed, "neighbours", clock.round, client)
        others = neighbours(self.topology, client, context.clients, self.neighbour_count, generator)
        models = tuple(PeerModel(c, sender=c) for c in others)
        return models if client in state.joined else (PeerModel(client, sender=SERVER), *models)

    def aggregate(
        self, state: DisPFLState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> DisPFLState:
        """Records which clients have trained; the clients do the averaging."""
        joined = {*state.joined, *(r.client for r in replies)}
        masks = {client: mask for client, mask in state.masks.items() if client not in joined}
        return replace(state, masks=masks, joined=tuple(sorted(joined)))

    def weights_to_evaluate(self, state: DisPFLState, context: ServerContext) -> Tensor | None:
        """None: there is no global model."""
        return None

    def global_mask(self, state: DisPFLState, context: ServerContext) -> Tensor | None:
        """None: masks are personal."""
        return None


@dataclass(frozen=True)
class Settings:
    """Settings of `algorithm=dispfl`."""

    topology: Topology = setting(
        "random",
        "which clients exchange models: `random` ones in each round, the previous and next (`ring`), or all (`full`)",
    )
    neighbours: int = setting(
        -1, "`topology=random`: number of neighbours; -1: the cohort size", at_least=1, also=(-1,)
    )
    regrow: Growth = setting(
        "gradient",
        "where a mask grows: by `gradient` (the paper), at `random` (the published scripts), or not at all",
    )
    different_initial: bool = setting(True, "each client draws its own first mask; false: all share one")
    fair_budget: bool = setting(
        False, "a sampled cohort trains each round, as in the other methods, instead of every client"
    )


def build(settings: Settings, recipe: Recipe) -> DisPFL:
    """DisPFL from its settings and the recipe (`algorithm=dispfl`). Raises SettingError if it keeps no weight."""
    recipe.check_keeps(
        kept_count(recipe.layout.trained_size, recipe.density), recipe.layout.trained_size, "weights"
    )
    fit = recipe.fit
    if isinstance(fit.schedule, ExponentialDecay):  # DisPFL's authors count rounds from 0
        fit = replace(fit, schedule=replace(fit.schedule, first_exponent=0))
    return DisPFL(
        fit,
        recipe.density,
        search=MaskSearch(recipe.drop_rate, settings.regrow),
        topology=settings.topology,
        neighbour_count=settings.neighbours if settings.neighbours > 0 else recipe.per_round,
        different_initial=settings.different_initial,
        erk_power_scale=recipe.erk_power_scale,
        per_round=recipe.per_round if settings.fair_budget else None,
    )


def unread(settings: Settings) -> tuple[str, ...]:
    """A fixed topology has a fixed number of neighbours."""
    return () if settings.topology == "random" else ("algorithm.params.neighbours",)


READS = ("density", "drop_rate", "erk_power_scale")
METHOD = Method(build, lambda settings: "DisPFL", Settings, reads=READS, unread=unread)
