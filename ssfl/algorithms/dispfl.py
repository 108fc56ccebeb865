"""DisPFL: decentralised sparse training with personal masks (Dai et al., ICML 2022).

Every client owns a mask over all trained parameters and a model inside it. A round of a client: average the last
published models of its neighbours and its own where they overlap, cut the result to its mask, train, publish, then
move the mask a little (drop the smallest weights, grow others). There is no server model: results are the clients'.
`docs/algorithms/dispfl.md` says what follows the authors' code and what does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    Probe,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS
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
from ssfl.core.masks import keep_
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import SERVER, Part, Payload, SparseValues, dense_values, pack_sparse
from ssfl.core.rng import stream
from ssfl.core.saliency import gradient as loss_gradient
from ssfl.core.topology import TOPOLOGIES, neighbours

GROWTHS = ("gradient", "random", "none")


@dataclass(frozen=True)
class MaskSearch:
    """How a client's mask moves after each round."""

    drop_rate: float = 0.5
    """Share of the kept weights replaced after the first round, per tensor; falls to 0 along a cosine."""
    grow: str = "gradient"
    """"gradient": where |dL/dw| of one batch is largest (the paper); "random" (the published scripts); "none"."""

    def probe(self, batch_size: int) -> Probe | None:
        """One training batch after training, in eval mode, neither clipped nor masked, as in the authors' code."""
        return Probe(loss_gradient, 1, batch_size) if self.grow == "gradient" else None

    def next_mask(self, mask: Tensor, work: Work, probed: Tensor | None, context: ClientContext) -> Tensor:
        """The mask [P] of the client's next round, with as many coordinates in every tensor as `mask` [P]."""
        if self.grow == "none":
            return mask
        size, spans = context.layout.trained_size, trained_spans(context.layout)
        rate = cosine_drop_rate(self.drop_rate, context.clock.round, context.clock.total)
        counts = drop_counts(mask[:size], rate, spans)
        left = drop_smallest(mask[:size], work["theta"][:size], counts, spans)
        if probed is None:
            draws = stream(context.seed, "grow", context.client, context.clock.round)
            grown = grow_random(left, counts, spans, draws)
        else:
            grown = grow_largest(left, probed, counts, spans)
        moved = mask.clone()
        moved[:size] = grown
        return moved


@dataclass(frozen=True)
class GossipTraining(ClientTask):
    """Neighbours' models in, SGD inside the own mask, the trained model with its mask out.

    The memory holds the model as trained ("values" on "bits" [P]: what the next average counts for this client) and
    the mask that the search chose since ("mask" [P]: what it is cut to).
    """

    search: MaskSearch = field()
    fit: FitSpec = field()
    probe: Probe | None = None
    evaluate: tuple[str, ...] = ("received", "trained")

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """The overlap mean of neighbours and self, times the own mask."""
        posts = [sparse_part(p, context.layout) for p in inbox if p.sender != SERVER]
        own = own_part(inbox, state, context)
        support = state.get("mask", own.bits)
        theta = overlap_mean([own, *posts]).mul_(support)
        return {"theta": theta, "mask": support[: context.layout.trained_size], "support": support}

    def project_weights(self, theta: Tensor, work: Work) -> Tensor:
        """w * m after each step; the gradient, and the norm that clipping sees, are dense."""
        return keep_(theta, work["mask"])

    def kept_model(self, state: ClientState) -> Tensor | None:
        """The model as trained last."""
        return dense_values(SparseValues(state["values"], state["bits"])) if "values" in state else None

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """Publish the weights under the mask they were trained under; remember them and the next mask."""
        part = pack_sparse(work["theta"], work["support"])
        chosen = self.search.next_mask(work["support"], work, probed, context)
        memory = {"values": part.values, "bits": part.bits, "mask": chosen}
        return Payload({WEIGHTS: part}, context.client), memory


def sparse_part(payload: Payload, layout: Layout) -> SparseValues:
    """A published model; ValueError when it is none of this layout."""
    part = payload.parts[WEIGHTS]
    if not isinstance(part, SparseValues) or part.bits.numel() != layout.size:
        raise ValueError(
            f"from {payload.sender}: expected a model of {layout.size} coordinates with its mask"
        )
    return part


def own_part(inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> SparseValues:
    """What the client itself published last; at its first visit, the model that the server sends."""
    if "values" in state:
        return SparseValues(state["values"], state["bits"])
    for payload in inbox:
        if payload.sender == SERVER:
            return sparse_part(payload, context.layout)
    raise ValueError(f"client {context.client} holds no model yet: send it its initial model first")


@final
@dataclass(frozen=True, eq=False)
class FirstPost(Mapping[str, Part]):
    """The initial model cut to a mask, made when it is looked at: between looks it takes a bit a coordinate.

    theta: the common initial model [P]; packed: the mask [P], 8 coordinates a byte (uint8).
    """

    theta: Tensor
    packed: Tensor

    @staticmethod
    def of(theta: Tensor, mask: Tensor) -> FirstPost:
        """From theta [P] and a mask [P] (bool)."""
        return FirstPost(theta, torch.from_numpy(np.packbits(mask.numpy())))

    def __getitem__(self, name: str) -> SparseValues:
        if name != WEIGHTS:
            raise KeyError(name)
        bits = np.unpackbits(self.packed.numpy(), count=self.theta.numel()).view(np.bool_)
        return pack_sparse(self.theta, torch.from_numpy(bits).to(self.theta.device))

    def __iter__(self) -> Iterator[str]:
        return iter((WEIGHTS,))

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class DisPFLState:
    """Every client's last published model, and who has worked yet.

    A simulation's notice board: in a deployment without a server each client holds its own entry. Before a client
    has worked its entry is a FirstPost; after it, a simulation's engine names what the client itself remembers.
    """

    published: Mapping[int, Payload]
    joined: tuple[int, ...] = ()


@dataclass(frozen=True)
class DisPFL:
    """Gossip over sparse personal models.

    per_round: None: every client trains in every round (the paper: ten times FedAvg's work at a cohort of a
    tenth); a number: only a sampled cohort of that size trains, each taking its neighbours' last published models,
    so that all methods of a comparison train the same.
    """

    fit: FitSpec
    density: float
    """Share of all trained parameters kept, (0, 1]; tensor by tensor by ERK."""
    search: MaskSearch = field(default_factory=MaskSearch)
    topology: str = "random"
    """"random" (`neighbour_count` others, drawn anew), "ring", "full"."""
    neighbour_count: int = 10
    different_initial: bool = True
    """An ERK mask of each client's own (the published scripts); False: one for all."""
    erk_power_scale: float = 1.0
    per_round: int | None = None

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES:
            raise ValueError(f"topology={self.topology!r}: allowed are {', '.join(TOPOLOGIES)}")
        if self.search.grow not in GROWTHS:
            raise ValueError(f"grow={self.search.grow!r}: allowed are {', '.join(GROWTHS)}")

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase "train"."""
        return {"train": GossipTraining(self.search, self.fit, self.search.probe(self.fit.batch_size))}

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (DisPFLState, FirstPost)

    def initialize(self, theta: Tensor, context: ServerContext) -> DisPFLState:
        """The common initial model, cut to each client's mask: what round 1 averages."""
        published: dict[int, Payload] = {}
        common = None if self.different_initial else self._first_post(theta, context, ())
        for client in context.clients:
            post = common or self._first_post(theta, context, (client,))
            published[client] = Payload(post, client)
        return DisPFLState(published)

    def _first_post(self, theta: Tensor, context: ServerContext, path: tuple[int, ...]) -> FirstPost:
        generator = stream(context.seed, "mask", *path)
        return FirstPost.of(theta, erk_mask(context.layout, self.density, generator, self.erk_power_scale))

    def configure_round(self, state: DisPFLState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """To everybody (or the cohort) what their neighbours published last; its own model at the first visit."""
        if clock.round > clock.total:
            return None
        chosen = context.clients if self.per_round is None else sample_clients(context, self.per_round, clock)
        instructions = tuple(Instruction(c, self._inbox(c, state, clock, context)) for c in chosen)
        return RoundPlan("train", instructions, clock)

    def _inbox(
        self, client: int, state: DisPFLState, clock: Clock, context: ServerContext
    ) -> tuple[Payload, ...]:
        generator = stream(context.seed, "neighbours", clock.round, client)
        heard = neighbours(self.topology, client, context.clients, self.neighbour_count, generator)
        posts = tuple(state.published[c] for c in heard)
        if client in state.joined:
            return posts
        return (Payload(state.published[client].parts, SERVER), *posts)

    def aggregate(
        self, state: DisPFLState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> DisPFLState:
        """Put the new models on the board; averaging is the clients' work."""
        news = {r.client: r.payload for r in replies}
        published = dict(state.published) | news
        joined = sorted({*state.joined, *news})
        return replace(state, published=published, joined=tuple(joined))

    def weights_to_evaluate(self, state: DisPFLState, context: ServerContext) -> Tensor | None:
        """There is no global model."""
        return None

    def global_mask(self, state: DisPFLState, context: ServerContext) -> Tensor | None:
        """Masks are personal."""
        return None
