"""SSFL: Salient Sparse Federated Learning (Ohib et al., TMLR 2026).

Phase 1, once: every client scores |gradient * weight| on one private minibatch of the common initial model; the
server forms s = sum_k p_k s_k and keeps the global top-k. Phase 2: FedAvg inside that mask, values without indices.
Where the authors' code and text differ, `docs/algorithms/ssfl.md` says what we do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import (
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Probe,
    RoundPlan,
    ServerContext,
    Work,
    sample_clients,
)
from ssfl.algorithms.dense import WEIGHTS, DenseTraining, broadcast, dense_mean, expected_examples
from ssfl.algorithms.masked import (
    MaskedState,
    MaskedTraining,
    StoreMask,
    SupportMemo,
    adopt_plan,
    masked_aggregate,
    masked_plan,
)
from ssfl.core.aggregate import weighted_mean
from ssfl.core.masks import kept_count, top_k_mask_with_floor
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import DenseValues, Payload, dense_values
from ssfl.core.rng import stream

SCORES = "scores"
"""Name of the part that holds saliency scores over prunable coordinates [N]."""


@dataclass(frozen=True)
class Discovery:
    """How the mask is found (phase 1)."""

    probe: Probe
    density: float
    """Share of prunable weights kept, (0, 1]."""
    weighting: str = "examples"
    """"examples": p_k = n_k / sum n (the paper's text); "uniform": plain mean (the authors' code)."""
    client_fraction: float = 1.0
    """Share of all clients that score, (0, 1]; the paper asks every client."""
    ties: str = "exact"
    """"exact": exactly floor(N * density) kept; "keep": the authors' threshold rule."""
    floor_density: float = 0.0
    """Least share kept in every layer, a guard against layers left empty; 0: none, as in the paper."""

    @property
    def averaged_by(self) -> str:
        """What weighs a client's scores in their mean."""
        return "examples" if self.weighting == "examples" else "clients"

    def mask(self, replies: Iterable[ClientReply], plan: RoundPlan, context: ServerContext) -> Tensor:
        """Bits [N]: top-k of s = sum_k p_k s_k, a mean of absolute values (README, phase 1, steps 2 and 3)."""
        weigh = self.weighting == "examples"
        expected = expected_examples(plan, context) if weigh else [1.0] * len(plan.instructions)
        replied = ((dense_values(r.payload.parts[SCORES]), r.examples if weigh else 1.0) for r in replies)
        scores = weighted_mean(replied, expected)
        keep = kept_count(scores.numel(), self.density)
        segments = context.layout.prunable_segments
        return top_k_mask_with_floor(scores, keep, segments, self.floor_density, self.ties)

    def scorers(self, clock: Clock, context: ServerContext) -> list[int]:
        """Who scores: all clients, or a seeded sample of them."""
        clients = context.clients
        count = max(1, round(self.client_fraction * len(clients)))
        order = torch.randperm(len(clients), generator=stream(context.seed, "scorers", clock.round))
        return sorted(clients[i] for i in order[:count].tolist())


@dataclass(frozen=True)
class ScoreSaliency(ClientTask):
    """Phase 1 on a client: no training; reply with scores over prunable weights."""

    probe: Probe = field()
    averaged_by: str = "examples"

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """The model to score."""
        return {"theta": dense_values(inbox[0].parts[WEIGHTS])}

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """Scores [N], unnormalised as in the authors' code."""
        if probed is None:
            raise ValueError("scoring without a probe")
        return Payload({SCORES: DenseValues(context.layout.take_prunable(probed))}, context.client), state


@dataclass(frozen=True)
class SSFL:
    """Score, broadcast the mask, train inside it.

    mask_round: dense training rounds before the mask is made (`warmup_rounds`, or `initial_mask_freq`); 0: before
    training, the paper's method.
    """

    fit: FitSpec
    per_round: int
    discovery: Discovery
    mask_round: int = 0
    memo: SupportMemo = field(default_factory=SupportMemo, compare=False, repr=False)

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phases "warmup", "score", "adopt", "train"."""
        return {
            "warmup": DenseTraining(self.fit),
            "score": ScoreSaliency(self.discovery.probe, self.discovery.averaged_by),
            "adopt": StoreMask(),
            "train": MaskedTraining(self.fit),
        }

    @property
    def records(self) -> tuple[type[Any], ...]:
        """What a checkpoint of the state holds."""
        return (MaskedState,)

    def initialize(self, theta: Tensor, context: ServerContext) -> MaskedState:
        """The initial model, dense until the mask is made."""
        return MaskedState(theta)

    def configure_round(self, state: MaskedState, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """Warm-up rounds, then score and adopt (untimed), then masked rounds."""
        if clock.round > clock.total:
            return None
        if state.bits is None:
            payload = Payload({WEIGHTS: DenseValues(state.theta)})
            if clock.round <= self.mask_round:
                return broadcast("warmup", sample_clients(context, self.per_round, clock), payload, clock)
            scorers = self.discovery.scorers(clock, context)
            return broadcast("score", scorers, payload, clock, timed=False)
        if not state.told:
            return adopt_plan(state.bits, clock, context)
        support = self.memo.of(state.bits, context.layout)
        return masked_plan(state, support, self.per_round, clock, context)

    def aggregate(
        self, state: MaskedState, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> MaskedState:
        """Scores become the mask and the model is cut to it; trained values are averaged by n_k."""
        if plan.phase == "warmup":
            return replace(state, theta=dense_mean(replies, plan, context))
        if plan.phase == "score":
            bits = self.discovery.mask(replies, plan, context)
            kept = context.layout.expand_mask(bits)
            return replace(state, theta=state.theta * kept, bits=bits)
        if plan.phase == "adopt":
            return replace(state, told=True)
        assert state.bits is not None
        return masked_aggregate(state, self.memo.of(state.bits, context.layout), replies, plan, context)

    def weights_to_evaluate(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The global model; zero off the mask once it is made."""
        return state.theta

    def global_mask(self, state: MaskedState, context: ServerContext) -> Tensor | None:
        """The mask [P] once made."""
        return None if state.bits is None else self.memo.of(state.bits, context.layout).mask
