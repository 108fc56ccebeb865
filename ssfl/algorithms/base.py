"""The interface of a method: what a client does in one phase, and the server's side.

P: all coordinates of the model. T: trained ones (`theta[..., :T]`). N: prunable ones. K: clients of a block.
The engine runs a task as receive -> fit -> probe -> reply; the local step is fixed as
gradient -> transform_gradient -> mask (before_clip) -> clip -> SGD -> project_weights -> mask (after_step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, final

import torch
from torch import Tensor, nn

from ssfl.core.layout import Layout
from ssfl.core.metrics import Tally
from ssfl.core.net import Batch, FlatNet, Statistics
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import Payload, Traffic
from ssfl.core.rng import stream
from ssfl.core.saliency import Saliency

Work = dict[str, Tensor]
"""A task's tensors: "theta" [P] and those that its hooks need ("mask" [T], ...). Executors stack them to [K, ...]."""
ClientState = Mapping[str, Tensor]
"""What a client keeps between rounds: tensors by name."""

THETA = "theta"
"""Name of the weights and statistics [P] in `Work`."""
MASK = "mask"
"""Name of the mask [T] (bool) in `Work` that `ClientTask.mask_stage` refers to."""

Moment = Literal["received", "trained"]
MaskStage = Literal["before_clip", "after_step", "unapplied"]
Weighting = Literal["examples", "clients"]
PartForm = Literal["dense", "sparse", "on_sent_mask"]
PartLength = Literal["model", "prunable", "factors"]


@dataclass(frozen=True)
class Clock:
    """The next training round, from 1 to `total`; a phase before a round has the number of that round."""

    round: int
    total: int


@dataclass(frozen=True)
class ServerContext:
    """What the server knows about the federation before the first round."""

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
    """What a client knows besides its data and its messages."""

    client: int
    clock: Clock
    seed: int
    layout: Layout
    examples: int


@dataclass(frozen=True)
class Probe:
    """A saliency on a few minibatches after the fit; `reply` receives the mean over minibatches [T]."""

    saliency: Saliency
    batches: int = 1
    batch_size: int = 16


Receive = Callable[[Sequence[Payload], ClientState, ClientContext], tuple[Work, ClientState]]
"""(inbox, state, context) -> (tensors to work on, new state).

The inbox's tensors are read-only, because several clients may share them. Return the given state if it does not change.
"""
Reply = Callable[[Work, Tensor | None, ClientState, ClientContext], tuple[Payload, ClientState]]
"""(work, mean saliency [T] if the task has a probe, state, context) -> (payload to send, new state).

The state is the one that `receive` returned; return it if it does not change. The task may keep the tensors that
training has set ("theta", `updates`); the other tensors of the work are those of `receive` and read-only.
"""
GradientHook = Callable[[Tensor, Tensor, Work], Tensor]
"""(gradient [..., T], theta [..., T], work) -> gradient [..., T]; may overwrite and return its first argument."""
WeightHook = Callable[[Tensor, Work], Tensor]
"""(theta [..., T], work) -> weights of the same shape."""
Objective = Callable[[FlatNet, Tensor, Work, Batch, Statistics | None], Tensor]
"""(network, theta [T], work, minibatch, running statistics) -> the scalar loss of one client."""


@final
@dataclass(frozen=True)
class ReplyPart:
    """A part that the replies of a task contain, so that a server can check a reply before it uses it."""

    form: PartForm
    """dense: all values of a vector; sparse: values with a mask of their own; on_sent_mask: values on the mask of the
    part with the same name that the client was sent."""
    length: PartLength = "model"
    """Coordinates of a dense or sparse part: all of the model, the prunable ones, or the factors of scores."""


@final
@dataclass(frozen=True)
class ClientTask:
    """What one client does in one phase: two functions, and a description of what the engine computes between them.

    Hooks work elementwise on `[..., T]` and reduce over the last axis only, so that they apply to one client and to a
    block of K clients. They must not branch on values or draw random numbers. None: no change to plain SGD.
    """

    receive: Receive
    reply: Reply
    fit: FitSpec | None = None
    """How to train; None: no training in this phase."""
    probe: Probe | None = None
    """The saliency to compute after training; None: none."""
    evaluate: tuple[Moment, ...] = ()
    """When to test the client's model on its own test split: before ("received") or after ("trained") the fit."""
    averaged_by: Weighting | None = None
    """Set if the server uses only the mean of this phase's replies, weighted by n_k ("examples") or by 1 ("clients");
    all replies must then have the same parts, dense or on one mask. None: it uses more than the mean."""
    mask_stage: MaskStage | None = None
    """Where work["mask"] [T] is applied: to the gradient before clipping, or to the weights after each step.
    "unapplied": nowhere, because weights outside it stay zero anyway; FLOPs count kept weights only. None: no mask."""
    transform_gradient: GradientHook | None = None
    """Applied to the gradient before mask and clipping; may overwrite it."""
    project_weights: WeightHook | None = None
    """Applied to theta after each step; may overwrite it."""
    effective_weights: WeightHook | None = None
    """The network's weights as a function of the trained coordinates; None: theta itself."""
    objective: Objective | None = None
    """The loss to minimise; None: mean cross-entropy at the effective weights."""
    prepare: Callable[[nn.Module], nn.Module] | None = None
    """Changes the network's layers once, before training; the layout must stay the same."""
    kept_model: Callable[[ClientState], Tensor | None] | None = None
    """The model [P] in a client's state, with effective weights; None if clients keep no model."""
    updates: tuple[str, ...] = ()
    """Names of tensors in the work that `objective` updates in place; executors keep the updates."""
    reply_parts: Mapping[str, ReplyPart] | None = None
    """Name -> the part of that name in every reply; a deployment refuses replies with others. None: not declared; a
    deployment then expects the parts that it sent, in the form in which it sent them."""

    @property
    def sees_theta(self) -> bool:
        """Whether the network's weights are theta and the loss is cross-entropy; fast implementations need both."""
        return self.objective is None and self.effective_weights is None

    @property
    def has_own_loss(self) -> bool:
        """Whether it trains a loss other than the network's cross-entropy at theta."""
        return self.fit is not None and not self.sees_theta

    def seen(self, theta: Tensor, work: Work) -> Tensor:
        """The effective weights [..., T] of theta [..., T]."""
        return theta if self.effective_weights is None else self.effective_weights(theta, work)

    def loss(
        self, net: FlatNet, theta: Tensor, work: Work, batch: Batch, statistics: Statistics | None
    ) -> Tensor:
        """The scalar loss of one client at theta [T]."""
        if self.objective is not None:
            return self.objective(net, theta, work, batch, statistics)
        return net.loss(self.seen(theta, work), batch, statistics)


@dataclass(frozen=True)
class PeerModel:
    """A reference in an inbox to the last payload that `client` sent in a plan with `publish`.

    The exchange replaces it by the payload, or by `RoundPlan.initial_model(client)` if the client has sent none.
    """

    client: int
    sender: int
    """The payload's sender, to which the bytes are counted: the client itself, or SERVER."""


@dataclass(frozen=True)
class Instruction:
    """The messages for one client; their `sender` is the server or another client."""

    client: int
    inbox: tuple[Payload | PeerModel, ...]


@dataclass(frozen=True)
class RoundPlan:
    """One exchange: the clients of the instructions run the task named `phase`."""

    phase: str
    instructions: tuple[Instruction, ...]
    clock: Clock
    timed: bool = True
    """Whether this exchange is a training round."""
    publish: bool = False
    """Whether later plans may refer to the replies by `PeerModel`."""
    initial_model: Callable[[int], Payload] | None = None
    """The payload of `PeerModel(client)` before that client has published; a pure function of the client number."""


@dataclass(frozen=True)
class TrainLoss:
    """Mean losses (nats) over the examples that a client trained on, each taken before its step."""

    last_epoch: float
    """Over the examples of the last local epoch."""
    all_epochs: float
    """Over the examples of all local epochs; an example counts once an epoch."""


@dataclass(frozen=True)
class ClientReport:
    """What a client reports besides its payload."""

    examples: int
    train_loss: TrainLoss | None = None
    """None if the phase has no training."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Tests on the client's own split, by the moment in `ClientTask.evaluate`."""
    train_flops: int = 0
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class ClientReply:
    """A client's reply to an instruction."""

    client: int
    payload: Payload
    report: ClientReport
    is_mean: bool = False
    """Whether the payload is the mean of all replies of the phase (ranks that exchange a mean)."""
    traffic: Traffic | None = None
    """Bytes of this client's own message, if the payload is the mean."""

    @property
    def examples(self) -> int:
        """The client's training examples n_k."""
        return self.report.examples


State = TypeVar("State")


class Algorithm(Protocol, Generic[State]):
    """The server's side of a method: pure functions. `State` is a frozen dataclass of tensors, numbers and payloads."""

    @property
    def tasks(self) -> Mapping[str, ClientTask]:
        """Phase name -> task."""
        ...

    @property
    def records(self) -> tuple[type[Any], ...]:
        """The dataclasses that a state consists of, for checkpoints."""
        ...

    def initialize(self, theta: Tensor, context: ServerContext) -> State:
        """The state before the first exchange, from the initial model theta [P]."""
        ...

    def configure_round(self, state: State, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """The next exchange, or None when the run is finished."""
        ...

    def aggregate(
        self, state: State, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> State:
        """The next state, from one pass over any non-empty subset of the planned replies, sorted by client."""
        ...

    def weights_to_evaluate(self, state: State, context: ServerContext) -> Tensor | None:
        """The global model's effective weights [P]; None for methods without a global model."""
        ...

    def global_mask(self, state: State, context: ServerContext) -> Tensor | None:
        """The current global mask [P] (bool), or None."""
        ...


def sample_clients(context: ServerContext, per_round: int, clock: Clock) -> list[int]:
    """The round's cohort: `per_round` clients drawn without replacement from a stream named by the round, ascending."""
    clients = context.clients
    order = torch.randperm(len(clients), generator=stream(context.seed, "sample", clock.round))
    return sorted(clients[i] for i in order[:per_round].tolist())
