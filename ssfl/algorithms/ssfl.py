"""SSFL: Salient Sparse Federated Learning (Ohib et al., TMLR 2026).

Phase 1, once: every client computes |gradient * weight| of the common initial model on one private minibatch; the
server forms s = sum_k p_k s_k and keeps the global top-k. Phase 2: FedAvg inside that mask, sending values without
indices. Where the authors' code and text differ, `docs/algorithms/ssfl.md` says which one is followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ssfl.algorithms.base import (
    THETA,
    Algorithm,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Probe,
    ReplyPart,
    RoundPlan,
    ServerContext,
    Weighting,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import (
    WEIGHTS,
    broadcast,
    dense_mean,
    dense_training,
    expected_examples,
    receive_dense,
)
from ssfl.algorithms.masked import (
    STORE_MASK,
    MaskedState,
    SupportMemo,
    masked_aggregate,
    masked_plan,
    masked_training,
    store_mask,
)
from ssfl.algorithms.method import KEYS, Method, Recipe, ScoreForm
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.core.aggregate import weighted_mean
from ssfl.core.factored import factors_of, scores_of
from ssfl.core.masks import Ties, kept_count, shuffled_within_layers, top_k_mask_with_floor
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import FACTORS, SCORES, DenseValues, Payload, dense_values
from ssfl.core.rng import stream
from ssfl.core.saliency import SALIENCIES
from ssfl.core.words import check_word
from ssfl.settings import SettingError, setting

Mode = Literal["static", "random_global", "random_layerwise", "random_clientwise", "ssfl_shuffled"]
Score = Literal["ssfl", "ssfl_aux", "grasp", "synflow", "magnitude"]
ScoreWeighting = Literal["examples", "uniform"]


@dataclass(frozen=True)
class Discovery:
    """How the mask is found (phase 1)."""

    probe: Probe
    density: float
    """Share of prunable weights kept, (0, 1]."""
    weighting: ScoreWeighting = "examples"
    """"examples": p_k = n_k / sum n (the paper's text); "uniform": plain mean (the authors' code)."""
    client_fraction: float = 1.0
    """Share of all clients that score, (0, 1]; in the paper all do."""
    ties: Ties = "exact"
    """"exact": exactly floor(N * density) kept; "keep": the authors' threshold rule."""
    floor_density: float = 0.0
    """Minimum share kept in every layer, to avoid empty layers; 0: none, as in the paper."""
    form: ScoreForm = "full"
    """"full": clients send a score a weight; "factored": the factors of each layer (`ssfl.core.factored`)."""
    shuffled: bool = False
    """Keep SSFL's number of weights in every layer, but at random places; a baseline between SSFL and a random mask."""

    def __post_init__(self) -> None:
        check_word("weighting", self.weighting, ScoreWeighting)
        check_word("ties", self.ties, Ties)

    @property
    def averaged_by(self) -> Weighting:
        """The weights of the clients in the mean of scores."""
        return "examples" if self.weighting == "examples" else "clients"

    def mask(
        self, theta: Tensor, replies: Iterable[ClientReply], plan: RoundPlan, context: ServerContext
    ) -> Tensor:
        """The mask [N] (bool): top-k of s = sum_k p_k s_k (paper, phase 1; docs/algorithms/ssfl.md).

        The mean is over the clients that replied; p_k is a client's share of their examples. theta [P]: the scored
        model.
        """
        weigh = self.weighting == "examples"
        expected = expected_examples(plan, context) if weigh else [1.0] * len(plan.instructions)
        name = FACTORS if self.form == "factored" else SCORES

        def scores_in(reply: ClientReply) -> tuple[Tensor, float]:
            return dense_values(reply.payload.parts[name]), float(reply.examples) if weigh else 1.0

        scores = weighted_mean(map(scores_in, replies), expected)
        if self.form == "factored":
            scores = scores_of(scores, context.layout.take_prunable(theta), context.layout)
        keep = kept_count(scores.numel(), self.density)
        segments = context.layout.prunable_segments
        bits = top_k_mask_with_floor(scores, keep, segments, self.floor_density, self.ties)
        return (
            shuffled_within_layers(bits, segments, stream(context.seed, "shuffle")) if self.shuffled else bits
        )

    def scorers(self, clock: Clock, context: ServerContext) -> list[int]:
        """The clients that score: all, or a sample drawn from the seed."""
        clients = context.clients
        count = max(1, round(self.client_fraction * len(clients)))
        order = torch.randperm(len(clients), generator=stream(context.seed, "scorers", clock.round))
        return sorted(clients[i] for i in order[:count].tolist())


def score_saliency(probe: Probe, averaged_by: Weighting, form: ScoreForm = "full") -> ClientTask:
    """A client's phase 1: no training; the reply contains scores over prunable weights, or their factors."""
    sent = (
        {FACTORS: ReplyPart("dense", "factors")}
        if form == "factored"
        else {SCORES: ReplyPart("dense", "prunable")}
    )
    return ClientTask(
        receive_dense, partial(_send_scores, form), probe=probe, averaged_by=averaged_by, reply_parts=sent
    )


def _send_scores(
    form: ScoreForm, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
) -> tuple[Payload, ClientState]:
    """Send scores [N], or their factors [F]; as in the authors' code, scores are not normalised."""
    if probed is None:
        raise ValueError("scoring without a probe")
    layout = context.layout
    scores = layout.take_prunable(probed)
    if form == "factored":
        factors = factors_of(scores, layout.take_prunable(work[THETA]), layout)
        return Payload({FACTORS: DenseValues(factors)}, context.client), state
    return Payload({SCORES: DenseValues(scores)}, context.client), state


@dataclass(frozen=True)
class SSFL:
    """Score, broadcast the mask, train inside it.

    mask_round: the round, from 1, before which the mask is made (`warmup_rounds`, or `initial_mask_freq`), after
    mask_round - 1 dense rounds, as in the authors' code; 0 or 1: before training, as in the paper.
    """

    fit: FitSpec
    per_round: int
    discovery: Discovery
    mask_round: int = 0
    memo: SupportMemo = field(default_factory=SupportMemo, compare=False, repr=False)

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phases "warmup", "score", "store_mask", "train"."""
        return {
            "warmup": dense_training(self.fit),
            "score": score_saliency(self.discovery.probe, self.discovery.averaged_by, self.discovery.form),
            STORE_MASK: store_mask(),
            "train": masked_training(self.fit, self.memo),
        }

    @property
    def records(self) -> tuple[type[Any], ...]:
        """Types of the state, for checkpoints."""
        return (MaskedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> MaskedState:
        """The initial model; it is dense until the mask is made."""
        return MaskedState(theta, dense_rounds=max(self.mask_round - 1, 0))

    def configure_round(self, state: MaskedState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """Warm-up rounds, then "score" and "store_mask" (not training rounds), then masked rounds."""
        if clock.round > clock.total:
            return None
        if state.bits is None:
            payload = Payload({WEIGHTS: DenseValues(state.theta)})
            if clock.round <= state.dense_rounds:
                return broadcast("warmup", sample_clients(context, self.per_round, clock), payload, clock)
            scorers = self.discovery.scorers(clock, context)
            return broadcast("score", scorers, payload, clock, timed=False)
        return masked_plan(state, self.memo, self.per_round, clock, context)

    def aggregate(
        self, state: MaskedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> MaskedState:
        """Makes the mask from scores and masks the model; averages trained values by n_k."""
        if plan.phase == "warmup":
            return replace(state, theta=dense_mean(replies, plan, context))
        if plan.phase == "score":
            bits = self.discovery.mask(state.theta, replies, plan, context)
            kept = context.layout.expand_mask(bits)
            return replace(state, theta=state.theta * kept, bits=bits)
        return masked_aggregate(state, self.memo, replies, plan, context)

    def weights_to_evaluate(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The global model [P]; zero outside the mask once it is made."""
        return state.theta

    def global_mask(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The mask [P] (bool) once it is made."""
        return None if state.bits is None else self.memo.of(state.bits, context.layout).mask


@dataclass(frozen=True)
class Settings:
    """Settings of `algorithm=ssfl`: SSFL, or with `mode` a random mask of its ablation."""

    mode: Mode = setting(
        "static",
        "`static`: the mask from the clients' scores; `random_*`: random masks; `ssfl_shuffled`: shuffled SSFL mask",
        published=True,
    )
    method: Score = setting(
        "ssfl",
        "saliency: `ssfl` (cross-entropy, eval mode), `ssfl_aux` (nll on raw logits, train mode); others: not in paper",
        published=True,
    )
    initial_mask_freq: int = setting(
        0,
        "the round, from 1, before which the mask is made, if warmup_rounds is 0; 0 or 1: before training",
        at_least=0,
        published=True,
    )
    warmup_rounds: int = setting(
        0,
        "the same, and overrides initial_mask_freq: W - 1 dense rounds, then the mask; at most training.comm_round",
        at_least=0,
        published=True,
    )
    weighting: ScoreWeighting = setting(
        "examples",
        "weight of a client's score: `examples`: n_k / sum n (the paper's text); `uniform`: equal (the authors' code)",
    )
    saliency_fraction: float = setting(1.0, "share of all clients that score", above=0, at_most=1)
    ties: Ties = setting(
        "exact",
        "equal scores at the threshold: by index, so that the count is exact, or `keep` all (the authors' code)",
    )
    min_layer_density: float = setting(
        0.0, "minimum density of every layer; at most model.dense_ratio; 0: none", at_least=0, at_most=1
    )


def check(settings: Settings, density: float, rounds: int) -> None:
    """Raises SettingError if the mask is made after the last round, or the layers' minimum exceeds the density.

    A random mask reads none of these settings.
    """
    if settings.mode.startswith("random_"):
        return
    for name in ("warmup_rounds", "initial_mask_freq"):
        value = getattr(settings, name)
        if value > rounds:
            allowed = f"must be at most training.comm_round={rounds}; otherwise no round trains with the mask"
            raise SettingError(name, value, allowed)
    if settings.min_layer_density > density:
        allowed = f"must be at most model.dense_ratio={density:g}, the density of the whole model"
        raise SettingError("min_layer_density", settings.min_layer_density, allowed)


def build(settings: Settings, recipe: Recipe) -> Algorithm[Any]:
    """SSFL, or the random mask that `mode` names. Raises SettingError if density or minima do not fit the network."""
    layout, density = recipe.layout, recipe.density
    if settings.mode in ("random_clientwise", "random_layerwise"):
        sizes = [b - a for _, a, b in layout.prunable_segments]
        kept = sum(kept_count(size, density) for size in sizes)
        recipe.check_keeps(kept, max(sizes, default=1), "weights of the largest layer")
    else:
        recipe.check_keeps(kept_count(layout.prunable_size, density), layout.prunable_size)
    if settings.mode == "random_clientwise":
        return ClientwiseRandomMask(recipe.fit, recipe.per_round, recipe.density)
    if settings.mode in ("random_global", "random_layerwise"):
        scope = cast(Literal["global", "layerwise"], settings.mode.removeprefix("random_"))
        return SharedRandomMask(recipe.fit, recipe.per_round, recipe.density, scope)
    mask_round = settings.warmup_rounds or settings.initial_mask_freq
    return SSFL(recipe.fit, recipe.per_round, discovery_of(settings, recipe), mask_round)


def discovery_of(settings: Settings, recipe: Recipe) -> Discovery:
    """Phase 1 for these settings. Raises SettingError if minima do not fit the network."""
    layout, density = recipe.layout, recipe.density
    keep = kept_count(layout.prunable_size, density)
    floor = settings.min_layer_density
    if floor > 0:
        floors = sum(max(1, kept_count(b - a, floor)) for _, a, b in layout.prunable_segments)
        if floors > keep:
            allowed = f"the layers' minima may keep at most {keep} weights (model.dense_ratio={density}), not {floors}"
            raise SettingError("min_layer_density", floor, allowed)
    probe = Probe(SALIENCIES[settings.method], recipe.probe_batches, recipe.fit.batch_size)
    form = recipe.score_form
    if form == "factored" and settings.method == "grasp":
        raise SettingError("communication.scores", form, "grasp scores are signed; use bf16 or fp32")
    return Discovery(
        probe,
        density,
        settings.weighting,
        settings.saliency_fraction,
        settings.ties,
        floor,
        form,
        shuffled=settings.mode == "ssfl_shuffled",
    )


def label(settings: Settings) -> str:
    """SSFL, or the kind of random mask."""
    return "SSFL" if settings.mode == "static" else f"{settings.mode.replace('_', ' ')} mask"


def unread(settings: Settings) -> tuple[str, ...]:
    """A random mask needs no scores and no warm-up; warmup_rounds overrides initial_mask_freq."""
    if settings.mode.startswith("random_"):
        own = (f"algorithm.params.{one.name}" for one in fields(Settings) if one.name != "mode")
        return (*own, *KEYS["probe_batches"], *KEYS["score_form"])
    return ("algorithm.params.initial_mask_freq",) if settings.warmup_rounds else ()


METHOD = Method(
    build, label, Settings, reads=("density", "probe_batches", "score_form"), check=check, unread=unread
)
