"""The protocol that every method speaks: a client's task in one phase, and the coordinator's side.

P: all coordinates of the model. T: trained ones (`theta[..., :T]`). N: prunable ones. K: clients of a block.
The engine runs a task as receive -> fit -> probe -> reply; the local step is fixed as
gradient -> transform_gradient -> clip -> SGD -> project_weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import Payload
from ssfl.core.rng import stream
from ssfl.core.saliency import Saliency

Work = dict[str, Tensor]
"""What a task works on: "theta" [P] and what its hooks need ("mask" [T], ...). The executors stack it to [K, ...]."""
ClientState = Mapping[str, Tensor]
"""What a client keeps between rounds; tensors only, so that a checkpoint is a dictionary of arrays."""


@dataclass(frozen=True)
class Clock:
    """Which training round is next: rounds count from 1 to `total`; phases before it carry its number."""

    round: int
    total: int


@dataclass(frozen=True)
class ServerContext:
    """What the coordinator knows of the federation before the first round."""

    layout: Layout
    example_counts: Mapping[int, int]
    """Training examples n_k per client."""
    seed: int

    @property
    def clients(self) -> list[int]:
        """All client numbers, ascending."""
        return sorted(self.example_counts)


@dataclass(frozen=True)
class ClientContext:
    """What a client knows besides its data and its inbox."""

    client: int
    clock: Clock
    seed: int
    layout: Layout
    examples: int


@dataclass(frozen=True)
class Probe:
    """A saliency on a few minibatches, after the fit; the mean over minibatches is handed to `reply`."""

    saliency: Saliency
    batches: int = 1
    batch_size: int = 16
    training_mode: bool = False


class ClientTask:
    """What one client does in one phase; pure. A subclass sets the fields and overrides what differs.

    A dataclass that requires a field redeclares it as `fit: FitSpec = field()`, else it inherits the None below.
    Hooks work on `[..., T]` (trained coordinates) elementwise and reduce over the last axis only, so that they
    hold for one client and for a block of K alike; they never branch on values and never draw.
    """

    fit: FitSpec | None = None
    """How to train; None: no training in this phase."""
    probe: Probe | None = None
    """What to score after training; None: nothing."""
    evaluate: tuple[str, ...] = ()
    """When to test the client's model on its own test split: "received" (before fit), "trained" (after)."""
    averaged_by: str = ""
    """"examples" or "clients": the server reads nothing of this phase's replies but their mean, weighted by n_k or
    by 1; all replies then hold the same parts, dense or on one mask. "": it reads more than that."""
    updates: tuple[str, ...] = ()
    """Tensors of the work that `objective` sets in place from step to step; executors keep them so."""

    def prepare(self, module: nn.Module) -> nn.Module:
        """A static change of the network's layers, made once; the layout must stay the same."""
        return module

    def receive(self, inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> Work:
        """Inbox and memory -> what to work on. The tensors returned are the task's to change."""
        raise NotImplementedError

    def effective_weights(self, theta: Tensor, work: Work) -> Tensor:
        """The weights that the network sees, from the trained coordinates [..., T]."""
        return theta

    def objective(
        self, net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None
    ) -> Tensor:
        """The scalar to minimise for one client, theta [T]."""
        return net.loss(self.effective_weights(theta, work), batch, statistics)

    def transform_gradient(self, gradient: Tensor, theta: Tensor, work: Work) -> Tensor:
        """Before clipping and the step; may overwrite `gradient [..., T]` and return it."""
        return gradient

    def project_weights(self, theta: Tensor, work: Work) -> Tensor:
        """After each step; may overwrite `theta [..., T]` and return it."""
        return theta

    def kept_model(self, state: ClientState) -> Tensor | None:
        """The model [P] that a client keeps in its memory, as the network sees it; None where it keeps none."""
        return None

    def reply(
        self, work: Work, probed: Tensor | None, state: ClientState, context: ClientContext
    ) -> tuple[Payload, ClientState]:
        """What to send back, and what to remember. `probed` is the mean saliency [T], if asked for."""
        raise NotImplementedError


def sees_theta(task: ClientTask) -> bool:
    """Whether the network sees theta itself and the loss is the plain one, so that any fast way to it serves."""
    kind = type(task)
    return kind.objective is ClientTask.objective and kind.effective_weights is ClientTask.effective_weights


@dataclass(frozen=True)
class Instruction:
    """For one client: what arrives. Payloads' senders say from whom (server, or another client)."""

    client: int
    inbox: tuple[Payload, ...]


@dataclass(frozen=True)
class RoundPlan:
    """One exchange: every named client runs the task called `phase`."""

    phase: str
    instructions: tuple[Instruction, ...]
    clock: Clock
    timed: bool = True
    """Whether this exchange is one of the training rounds."""


@dataclass(frozen=True)
class ClientReport:
    """What a client tells of its work, apart from the payload."""

    examples: int
    train_loss: float | None = None
    """Mean over the examples of the last local epoch."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Own-split evaluations, by the name in `ClientTask.evaluate`."""
    train_flops: int = 0
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class ClientReply:
    """A client's answer to an instruction."""

    client: int
    payload: Payload
    report: ClientReport

    @property
    def examples(self) -> int:
        """The client's training examples n_k."""
        return self.report.examples


State = TypeVar("State")


class Algorithm(Protocol, Generic[State]):
    """The coordinator's side; pure. State is a frozen dataclass of tensors, numbers and payloads."""

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase name -> task."""
        ...

    @property
    def records(self) -> tuple[type[Any], ...]:
        """The dataclasses that a state is made of, for checkpoints."""
        ...

    def initialize(self, theta: Tensor, context: ServerContext) -> State:
        """State before the first exchange, from the initial model theta [P]."""
        ...

    def configure_round(self, state: State, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """The next exchange, or None when all is done."""
        ...

    def aggregate(
        self, state: State, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> State:
        """The next state, in one pass over any non-empty subset of the planned replies, sorted by client."""
        ...

    def weights_to_evaluate(self, state: State, context: ServerContext) -> Tensor | None:
        """Global weights [P] as the network sees them; None for methods without a global model."""
        ...

    def global_mask(self, state: State, context: ServerContext) -> Tensor | None:
        """The common mask [P] in force, or None."""
        ...


def sample_clients(context: ServerContext, per_round: int, clock: Clock) -> list[int]:
    """The round's cohort: `per_round` clients drawn without replacement, ascending; equal in every runtime."""
    clients = context.clients
    order = torch.randperm(len(clients), generator=stream(context.seed, "sample", clock.round))
    return sorted(clients[i] for i in order[:per_round].tolist())
