"""A method from outside the package: its faults are one line that names the function, before files are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import (
    THETA,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    RoundPlan,
    ServerContext,
    Work,
)
from ssfl.algorithms.dense import WEIGHTS, dense_training
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.method import Method, MethodError, method_of_class
from ssfl.assemble.checked_method import CheckedMethod
from ssfl.cli import main
from ssfl.config import ConfigError
from ssfl.core.payloads import DenseValues, Payload, dense_values
from ssfl.settings import setting
from tests.support.assembled import WORDS, run_setup

HERE = "algorithm.name=tests.assemble.test_checked_method:"
Change = Callable[[ClientTask], dict[str, Any]]


def method_with(**fields: Any) -> Method:
    """FedAvg with other fields of its training task."""

    def build(settings: Any, recipe: Any) -> FedAvg:
        return FedAvg(recipe.fit, recipe.per_round, client=replace(dense_training(recipe.fit), **fields))

    return Method(build, lambda settings: "changed")


def weights(inbox: Sequence[Payload]) -> Tensor:
    return dense_values(inbox[0].parts[WEIGHTS])


def reply_of(parts: Any) -> Callable[..., Any]:
    """A `reply` that sends parts(theta)."""
    return lambda work, score, memory, context: (Payload(parts(work[THETA]), context.client), memory)


def received(work: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """A `receive` that returns work(theta)."""
    return lambda inbox, memory, context: (work(weights(inbox)), memory)


def raises(*arguments: Any) -> Any:
    raise KeyError("anchor")


ReceiveOne = method_with(receive=lambda inbox, memory, context: {"theta": weights(inbox)})
ReceiveNoTheta = method_with(receive=received(lambda theta: {"w": theta}))
ReceiveShort = method_with(receive=received(lambda theta: {"theta": theta[:-5]}))
ReceiveInPlace = method_with(receive=received(lambda theta: {"theta": theta.mul_(2)}))
ReceiveRaises = method_with(receive=raises)
ReplyTensor = method_with(reply=lambda work, score, memory, context: (work[THETA], memory))
ReplyBare = method_with(reply=reply_of(lambda theta: {WEIGHTS: theta}))
ReplyNaN = method_with(reply=reply_of(lambda theta: {WEIGHTS: DenseValues(theta * torch.nan)}))
ReplyNumber = method_with(
    reply=lambda w, s, m, c: (Payload({WEIGHTS: DenseValues(w[THETA])}, c.client), {"n": 1})
)
ReplyServer = method_with(reply=lambda w, s, m, c: (Payload({WEIGHTS: DenseValues(w[THETA])}), m))
GradientNone = method_with(transform_gradient=lambda gradient, theta, work: None)
GradientShort = method_with(transform_gradient=lambda gradient, theta, work: gradient[:3])
GradientNaN = method_with(transform_gradient=lambda gradient, theta, work: gradient * torch.nan)
GradientRaises = method_with(transform_gradient=lambda gradient, theta, work: gradient + work["anchor"])
WeightsNone = method_with(project_weights=lambda theta, work: None)
EffectiveShort = method_with(effective_weights=lambda theta, work: theta[..., :3])
ObjectiveVector = method_with(objective=lambda net, theta, work, batch, statistics: theta)
ObjectiveNumber = method_with(objective=lambda net, theta, work, batch, statistics: 1.0)
MaskMissing = method_with(mask_stage="before_clip")
MaskFloats = method_with(
    mask_stage="before_clip", receive=received(lambda theta: {"theta": theta, "mask": torch.ones_like(theta)})
)
StageTypo = method_with(mask_stage="beforeclip")
EvaluateTypo = method_with(evaluate=("train",))
AverageTypo = method_with(averaged_by="example")
FitNumber = method_with(fit=3)
KeptShort = method_with(
    reply=lambda w, s, m, c: (Payload({WEIGHTS: DenseValues(w[THETA])}, c.client), {"own": w[THETA][:4]}),
    kept_model=lambda memory: memory.get("own"),
)


@dataclass(frozen=True)
class State:
    theta: Tensor


@dataclass(frozen=True)
class Server(FedAvg):
    """FedAvg with a state of its own; every subclass has one fault."""

    @property
    def records(self) -> tuple[type[Any], ...]:
        return (State,)

    def initialize(self, theta: Tensor, context: ServerContext) -> Any:
        return State(theta)

    def configure_round(self, state: Any, clock: Clock, context: ServerContext) -> Any:
        return None if clock.round > clock.total else super().configure_round(state, clock, context)

    def aggregate(
        self, state: Any, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> Any:
        replied = list(replies)
        total = sum(reply.examples for reply in replied)
        parts = (dense_values(r.payload.parts[WEIGHTS]) * (r.examples / total) for r in replied)
        return State(torch.stack(list(parts)).sum(0))


def server_with(name: str, **functions: Any) -> type[Server]:
    return dataclass(frozen=True)(type(name, (Server,), {**functions, "__module__": __name__}))


def of_theta(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda self, state, *others: change(state.theta)


def planned(change: Callable[[RoundPlan], Any]) -> Callable[..., Any]:
    """A `configure_round` that changes the plan."""

    def configure_round(self: Any, state: Any, clock: Clock, context: ServerContext) -> Any:
        plan = Server.configure_round(self, state, clock, context)
        return None if plan is None else change(plan)

    return configure_round


PlanNothing = server_with("PlanNothing", configure_round=lambda self, state, clock, context: None)
PlanTuple = server_with("PlanTuple", configure_round=planned(lambda plan: ("train", ())))
PlanPhase = server_with("PlanPhase", configure_round=planned(lambda plan: replace(plan, phase="trian")))
PlanStranger = server_with(
    "PlanStranger",
    configure_round=planned(
        lambda plan: replace(plan, instructions=(replace(plan.instructions[0], client=99),))
    ),
)
PlanTwice = server_with(
    "PlanTwice",
    configure_round=planned(lambda plan: replace(plan, instructions=(plan.instructions[0],) * 2)),
)
PlanNobody = server_with(
    "PlanNobody", configure_round=planned(lambda plan: replace(plan, instructions=(), timed=False))
)
PlanBare = server_with(
    "PlanBare",
    configure_round=planned(
        lambda plan: replace(
            plan,
            instructions=(
                Instruction(0, plan.instructions[0].inbox[0]),  # type: ignore[arg-type]
            ),
        )
    ),
)
AggregateRaises = server_with("AggregateRaises", aggregate=lambda self, state, *others: state.mask)
AggregateNone = server_with("AggregateNone", aggregate=of_theta(lambda theta: None))
AggregateTensor = server_with("AggregateTensor", aggregate=of_theta(lambda theta: theta))
AggregateInPlace = server_with("AggregateInPlace", aggregate=of_theta(lambda theta: State(theta.add_(1))))
AggregateDouble = server_with("AggregateDouble", aggregate=of_theta(lambda theta: State(theta.double())))
InitialNone = server_with("InitialNone", initialize=lambda self, theta, context: None)
ModelShort = server_with("ModelShort", weights_to_evaluate=of_theta(lambda theta: theta[:7]))
GlobalMaskShort = server_with("GlobalMaskShort", global_mask=of_theta(lambda theta: theta[:7] > 0))
RecordsEmpty = server_with("RecordsEmpty", records=property(lambda self: ()))
TasksFunction = server_with("TasksFunction", tasks=lambda self: {})


class Remembers(Server):
    """Counts its rounds in itself, which no checkpoint contains."""

    def aggregate(
        self, state: Any, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> Any:
        self.__dict__["rounds"] = getattr(self, "rounds", 0) + 1
        return super().aggregate(state, plan, replies, context)


class Appends(Server):
    """Its list is another one after a resume."""

    def __init__(self, *fields: Any, **named: Any) -> None:
        super().__init__(*fields, **named)
        self.__dict__["losses"] = []

    def aggregate(
        self, state: Any, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> Any:
        self.__dict__["losses"].append(1.0)
        return super().aggregate(state, plan, replies, context)


class Pair(NamedTuple):
    loss: float
    round: int


@dataclass(frozen=True)
class WithPair:
    theta: Tensor
    pair: Pair = field(default_factory=lambda: Pair(0.5, 1))


@dataclass(frozen=True)
class WithList:
    theta: Tensor
    losses: list[float] = field(default_factory=list)


def remembering(kind: type[Any], **more: Callable[[Any], Any]) -> dict[str, Any]:
    """Functions of a server whose state is of this kind; more: the new values of its other fields."""

    def aggregate(self: Any, state: Any, *others: Any) -> Any:
        theta = Server.aggregate(self, state, *others).theta
        return kind(theta, **{name: change(getattr(state, name)) for name, change in more.items()})

    return {
        "records": property(lambda self: (kind,)),
        "initialize": lambda self, theta, context: kind(theta),
        "aggregate": aggregate,
    }


StatePair = server_with("StatePair", **remembering(WithPair))
StateList = server_with("StateList", **remembering(WithList, losses=lambda losses: [*losses, 0.5]))


@dataclass(frozen=True)
class Half:
    """Lacks functions."""

    tasks = Server.tasks
    records = Server.records


Number = Method(lambda settings, recipe: 3, lambda settings: "number")  # type: ignore[arg-type, return-value]
BuildRaises = Method(raises, lambda settings: "raises")
LabelNumber = Method(lambda settings, recipe: FedAvg(recipe.fit, 1), lambda settings: 3)  # type: ignore[arg-type, return-value]
CheckRaises = Method(lambda settings, recipe: FedAvg(recipe.fit, 1), lambda settings: "x", check=raises)

FAULTS = {
    "ReceiveOne": "phase train, round 1: receive returns a dict; it must return two values",
    "ReceiveNoTheta": 'receive returns a work without "theta"; it has w',
    "ReceiveShort": r'receive returns work\["theta"\] as a tensor of float32',
    "ReceiveInPlace": "receive changes a tensor that was received in place",
    "ReceiveRaises": r"receive fails: KeyError: 'anchor' \(test_checked_method.py, line \d+\)",
    "ReplyTensor": "reply returns a tensor of float32 .* as payload; it must be Payload",
    "ReplyBare": "reply returns a payload whose part 'w.*' is a tensor .*DenseValues",
    "ReplyNaN": "the global model is not finite.* reply or aggregate of phase train",
    "ReplyNumber": "reply returns the client's state with 'n' as 1, not a tensor",
    "ReplyServer": "reply returns a payload from -1; it must be .*context.client",
    "GradientNone": "transform_gradient returns None; it must be a tensor of floats",
    "GradientShort": r"transform_gradient returns a tensor of float32 \[3\]",
    "GradientNaN": "transform_gradient returns values that are not finite",
    "GradientRaises": "transform_gradient fails: KeyError: 'anchor'",
    "WeightsNone": "project_weights returns None",
    "EffectiveShort": "effective_weights returns a tensor",
    "ObjectiveVector": "objective returns a tensor .*; it must be a tensor of one value",
    "ObjectiveNumber": "objective returns 1.0; it must be a tensor of one value",
    "MaskMissing": 'receive returns a work without "mask"',
    "MaskFloats": r'receive returns work\["mask"\] as a tensor of float32 .*of bool',
    "StageTypo": r"tasks\['train'\] has mask_stage='beforeclip'; allowed: None, before_clip",
    "EvaluateTypo": r"tasks\['train'\] has evaluate=\('train',\); .*received and trained",
    "AverageTypo": r"tasks\['train'\] has averaged_by='example'; allowed: None, examples, clients",
    "FitNumber": r"tasks\['train'\] has fit=3",
    "KeptShort": r"kept_model returns a tensor of float32 \[4\]",
    "PlanNothing": "configure_round returns None before the first round",
    "PlanTuple": "configure_round, round 1 returns a tuple of 2; it must be a RoundPlan",
    "PlanPhase": "configure_round, round 1 plans phase 'trian'; tasks has train",
    "PlanStranger": "plans for client 99; clients are 0 to 3",
    "PlanNobody": "plans phase train for no client; only a training round may have none",
    "PlanTwice": "plans two instructions for client",
    "PlanBare": "plans with inbox=a Payload; it must be a tuple",
    "AggregateRaises": r"aggregate, phase train, round 1 fails: AttributeError.*test_checked_method.py",
    "AggregateNone": "aggregate, phase train, round 1 returns None instead of a State",
    "AggregateTensor": "returns a tensor .* instead of a State",
    "AggregateInPlace": "aggregate, phase train, round 1 changes the state in place",
    "AggregateDouble": "weights_to_evaluate returns torch.float64; the initial model is torch.float32",
    "InitialNone": "initialize returns None instead of a state",
    "ModelShort": r"weights_to_evaluate returns a tensor of float32 \[7\]; .*, or None",
    "GlobalMaskShort": r"global_mask returns a tensor of bool \[7\]; .*, or None",
    "RecordsEmpty": "records lists nothing: it must list every dataclass in the state",
    "Remembers": r"self.rounds changes between calls; put it into the state",
    "Appends": r"self.losses changes between calls; put it into the state",
    "StatePair": "the state.pair is a Pair, and is read as a tuple; use that type",
    "TasksFunction": "tasks is a method; it must be a property",
    "Half": "Half has no initialize, configure_round, aggregate, weights_to_evaluate, global_mask",
    "Number": "int has no tasks",
    "BuildRaises": "cannot be built: KeyError: 'anchor'",
    "LabelNumber": "its label is 3; it must be a text",
    "CheckRaises": r"its check of the settings failed \(KeyError: 'anchor'\)",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_method_is_one_line_that_names_the_function(name: str) -> None:
    with pytest.raises(ConfigError, match=f"test_checked_method:{name}: .*{FAULTS[name]}") as found:
        run_setup(HERE + name)
    assert "\n" not in str(found.value)


def test_a_refused_method_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", *WORDS, f"experiment.output_dir={tmp_path / 'out'}", f"{HERE}AggregateRaises")
    assert main(words) == 2
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_state_with_a_list_is_resumed_with_a_list(tmp_path: Path) -> None:
    words = ["run", *WORDS, f"experiment.output_dir={tmp_path}", f"{HERE}StateList", "wandb.exp_name=it"]
    assert main([*words, "training.comm_round=2", "checkpoint.every_rounds=1"]) == 0
    (folder,) = (tmp_path / "it").iterdir()
    assert main(["resume", str(folder), "training.comm_round=3"]) == 0


def test_the_trial_leaves_nothing_in_the_runs_method(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[CheckedMethod] = []
    monkeypatch.setattr(
        "ssfl.assemble.network_checks.try_method", lambda config, method, *rest: tried.append(method)
    )
    setup = run_setup(f"{HERE}StateList")
    assert isinstance(setup.algorithm, CheckedMethod)
    assert len(tried) == 1
    assert tried[0].inner is not setup.algorithm.inner


def late(self: Any, state: Any, plan: RoundPlan, replies: Any, context: ServerContext) -> Any:
    """An `aggregate` that fails in round 3, after the trial."""
    if plan.clock.round == 3:
        raise IndexError("too late")
    return Server.aggregate(self, state, plan, replies, context)


Late = server_with("Late", aggregate=late)


def test_a_fault_in_a_later_round_keeps_the_rounds_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WORDS, f"experiment.output_dir={tmp_path}", f"{HERE}Late", "training.comm_round=4")
    assert main(("run", *words, "experiment.debug_mode=true")) == 1
    said = capsys.readouterr().err
    assert "aggregate, phase train, round 3 fails: IndexError: too late" in said
    assert "stopped after round 2" in said
    (folder,) = (tmp_path / "digits").iterdir()
    assert "IndexError: too late" in (folder / "debug" / "error.txt").read_text()
    monkeypatch.setattr(Late, "aggregate", Server.aggregate)
    assert main(("resume", str(folder))) == 0
    assert "global accuracy" in capsys.readouterr().out


def count(work: Work, score: Any, memory: ClientState, context: ClientContext) -> tuple[Payload, ClientState]:
    rounds = memory.get("rounds", torch.zeros(()))
    return Payload({WEIGHTS: DenseValues(work[THETA])}, context.client), {"rounds": rounds + 1}


Counting = method_with(reply=count)


def test_a_correct_method_is_taken_and_its_numbers_do_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(run_setup(f"{HERE}Counting").algorithm, CheckedMethod)
    found = []
    for number, method in enumerate(("algorithm=fedavg", f"{HERE}Counting")):
        assert main(("run", *WORDS, method, f"experiment.output_dir={tmp_path / str(number)}")) == 0
        (folder,) = (tmp_path / str(number) / "digits").iterdir()
        found.append((folder / "model.safetensors").read_bytes().partition(b"}}")[2][-4000:])
    assert found[0] == found[1]


EveryOtherRound = server_with(
    "EveryOtherRound",
    configure_round=planned(lambda plan: plan if plan.clock.round % 2 else replace(plan, instructions=())),
)


def test_a_training_round_may_have_no_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds 2 and 4 leave the model as it is, and an estimate of a round is the mean over both kinds."""
    words = (*WORDS, f"{HERE}EveryOtherRound", "training.comm_round=4")
    assert main(("run", *words, f"experiment.output_dir={tmp_path}")) == 0
    (metrics,) = tmp_path.glob("digits/*/metrics.jsonl")
    rounds = [row for row in map(json.loads, metrics.read_text().splitlines()) if row["event"] == "round"]
    assert [row["uplink_bytes"] > 0 for row in rounds] == [True, False, True, False]
    assert main(("estimate", *words)) == 0
    assert "dense FedAvg / this run" in capsys.readouterr().out


def acknowledge(work: Any, score: Any, memory: ClientState, context: ClientContext) -> Any:
    return Payload({}, context.client), memory


def stored(inbox: Sequence[Payload], memory: ClientState, context: ClientContext) -> tuple[Work, ClientState]:
    return {}, {"start": weights(inbox)}


def needs_start(
    inbox: Sequence[Payload], memory: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    return {THETA: memory["start"]}, memory


@dataclass(frozen=True)
class Phased(Server):
    """A first phase whose replies are not read, and whose state the second phase needs."""

    @property
    def tasks(self) -> Any:
        train = replace(super().tasks["train"], receive=needs_start, averaged_by=None)
        return {"first": ClientTask(stored, acknowledge), "train": train}

    @property
    def records(self) -> tuple[type[Any], ...]:
        return (State, Stored)

    def initialize(self, theta: Tensor, context: ServerContext) -> Any:
        return Stored(theta)

    def configure_round(self, state: Any, clock: Clock, context: ServerContext) -> Any:
        plan = super().configure_round(state, clock, context)
        if not isinstance(state, Stored) or plan is None:
            return plan
        message = Payload({WEIGHTS: DenseValues(state.theta)})
        every = tuple(Instruction(client, (message,)) for client in context.clients)
        return replace(plan, phase="first", timed=False, instructions=every)

    def aggregate(self, state: Any, plan: RoundPlan, replies: Any, context: ServerContext) -> Any:
        if plan.phase == "first":
            return State(state.theta)
        return super().aggregate(state, plan, replies, context)


@dataclass(frozen=True)
class Stored:
    theta: Tensor


def test_replies_that_a_method_does_not_read_are_received(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*WORDS, f"{HERE}Phased", f"experiment.output_dir={tmp_path}")
    assert main(("estimate", *words)) == 0
    assert "first, down (once, 4 clients)" in capsys.readouterr().out
    assert main(("run", *words)) == 0


def test_of_a_large_exchange_the_first_clients_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next phase is then not tried, because the other clients lack what the first ones received."""
    monkeypatch.setattr("ssfl.assemble.method_trial.MOST_VALUES", 1)
    run_setup(f"{HERE}Phased")
    with pytest.raises(ConfigError, match=FAULTS["AggregateRaises"]):
        run_setup(f"{HERE}AggregateRaises")


# ── declarations ─────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Base(Server):
    rate: float = setting(0.5, "a setting", above=0)


@dataclass(frozen=True)
class Derived(Base):
    kind: int = setting(3, "another setting")


def test_a_subclass_has_the_settings_of_its_base() -> None:
    method = method_of_class(Derived)
    assert (method.settings().rate, method.settings().kind) == (0.5, 3)


@dataclass(frozen=True)
class Undeclared:
    mu: float = 0.1


@dataclass(frozen=True)
class Lists:
    mu: list[float] = setting((), "a list")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"settings": Undeclared}, "Undeclared: the field mu is no setting; declare it with .*setting"),
        ({"settings": Lists}, "Lists: its annotations cannot be read .*list"),
        ({"settings": 3}, "3: is not a dataclass"),
        ({"reads": ("dense",)}, r"reads=\('dense',\); allowed: a tuple of fine_tune, density"),
        ({"reads": "density"}, "reads='density'; allowed: a tuple"),
    ],
)
def test_a_wrong_declaration_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        Method(raises, lambda settings: "x", **fields)
