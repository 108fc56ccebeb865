"""A method from outside the package whose functions are checked at every call: a fault is one line that names it.

Types and shapes are compared, not values, so that the checks take no time beside the training.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final, get_args

import torch
from torch import Tensor

import ssfl
from ssfl.algorithms.base import (
    MASK,
    THETA,
    Algorithm,
    ClientContext,
    ClientReply,
    ClientState,
    ClientTask,
    Clock,
    Instruction,
    MaskStage,
    Moment,
    PeerModel,
    Probe,
    RoundPlan,
    ServerContext,
    Weighting,
    Work,
)
from ssfl.core.layout import Layout
from ssfl.core.optim import FitSpec
from ssfl.core.payloads import Part, Payload
from ssfl.engine.client.errors import Cancelled, ClientError, EngineError, place_of

T = TypeVar("T")

FUNCTIONS = ("initialize", "configure_round", "aggregate", "weights_to_evaluate", "global_mask")
"""The functions of an algorithm; `tasks` and `records` are its properties."""


HOOKS = ("transform_gradient", "project_weights", "effective_weights", "objective", "prepare", "kept_model")
"""The functions of a task that may be None."""


@final
class MethodFault(EngineError):
    """A function of the server's side failed or returned a value that is not allowed."""


@final
@dataclass(frozen=True)
class CheckedMethod:
    """The algorithm `inner`; raises MethodFault, or ClientError in a client's work, if it breaks its interface."""

    inner: Algorithm[Any]
    layout: Layout
    tasks: Mapping[str, ClientTask]
    records: tuple[type[Any], ...]

    def initialize(self, theta: Tensor, context: ServerContext) -> Any:
        """See `Algorithm`."""
        with named("initialize"), _unchanged("initialize", "theta", theta):
            state = self.inner.initialize(theta, context)
        _refuse("initialize", "returns None instead of a state" if state is None else "")
        return state

    def configure_round(self, state: Any, clock: Clock, context: ServerContext) -> RoundPlan | None:
        """See `Algorithm`."""
        where = f"configure_round, round {clock.round}"
        with named(where), _unchanged(where, "the state", state):
            plan = self.inner.configure_round(state, clock, context)
        _refuse(where, plan_fault(plan, clock, context, self.tasks))
        return plan

    def aggregate(
        self, state: Any, plan: RoundPlan, replies: Iterable[ClientReply], context: ServerContext
    ) -> Any:
        """See `Algorithm`. Errors of the exchange, which computes the replies, pass unchanged."""
        where = f"aggregate, phase {plan.phase}, round {plan.clock.round}"
        failed: list[Exception] = []

        def relayed() -> Iterator[ClientReply]:
            try:
                # `yield from` would close the exchange before its last replies are received.
                for reply in replies:
                    yield reply
                    del reply  # before the next one is received
            except Exception as error:
                failed.append(error)
                raise

        with named(where, failed), _unchanged(where, "the state", state):
            new = self.inner.aggregate(state, plan, relayed(), context)
        wrong = type(new) not in (type(state), *self.records)
        _refuse(where, f"returns {kind(new)} instead of {kind(state)}" if wrong else "")
        return new

    def weights_to_evaluate(self, state: Any, context: ServerContext) -> Tensor | None:
        """See `Algorithm`."""
        with named("weights_to_evaluate"):
            theta = self.inner.weights_to_evaluate(state, context)
        refuse_vector("weights_to_evaluate", theta, self.layout.size, boolean=False)
        return theta

    def global_mask(self, state: Any, context: ServerContext) -> Tensor | None:
        """See `Algorithm`."""
        with named("global_mask"):
            mask = self.inner.global_mask(state, context)
        refuse_vector("global_mask", mask, self.layout.size, boolean=True)
        return mask


def checked(algorithm: Any, layout: Layout) -> CheckedMethod:
    """The algorithm with its functions checked. Raises MethodFault if it lacks a function or declares a wrong task."""
    lacking = [n for n in ("tasks", "records", *FUNCTIONS) if not hasattr(type(algorithm), n)]
    lacking = [n for n in lacking if n not in getattr(algorithm, "__dict__", {})]
    _refuse(
        type(algorithm).__name__, f"has no {', '.join(lacking)} (docs/write-a-method.md)" if lacking else ""
    )
    with named("tasks"):
        tasks = algorithm.tasks
    if not isinstance(tasks, Mapping) or not tasks:
        _refuse("tasks", f"is {kind(tasks)}; it must be a property, a dict of ClientTask by phase")
    for phase, task in tasks.items():
        _refuse(f"tasks[{phase!r}]", declaration_fault(task))
    with named("records"):
        records = algorithm.records
    good = isinstance(records, (tuple, list)) and all(isinstance(one, type) for one in records)
    _refuse("records", "" if good else f"is {kind(records)}; it must be a property, a tuple of classes")
    made = {phase: _checked_task(task, phase) for phase, task in tasks.items()}
    return CheckedMethod(algorithm, layout, made, tuple(records))


def unchecked(algorithm: Algorithm[Any]) -> Algorithm[Any]:
    """The algorithm itself."""
    return algorithm.inner if isinstance(algorithm, CheckedMethod) else algorithm


def _checked_task(task: ClientTask, phase: str) -> ClientTask:
    return replace(task, receive=partial(_receive, task, phase), reply=partial(_reply, task, phase))


def _receive(
    task: ClientTask, phase: str, inbox: Sequence[Payload], memory: ClientState, context: ClientContext
) -> tuple[Work, ClientState]:
    with _of_client("receive", phase, context):
        with named("receive"), _unchanged("receive", "a tensor that was received", (inbox, memory)):
            found = task.receive(inbox, memory, context)
        _refuse("receive", _pair_fault(found, "work"))
        work, after = found
        _refuse(
            "receive", work_fault(task, work, context.layout) or _tensors_fault(after, "the client's state")
        )
    return work, after


def _reply(
    task: ClientTask,
    phase: str,
    work: Work,
    score: Tensor | None,
    memory: ClientState,
    context: ClientContext,
) -> tuple[Payload, ClientState]:
    with _of_client("reply", phase, context):
        with named("reply"), _unchanged("reply", "the client's state", memory):
            found = task.reply(work, score, memory, context)
        _refuse("reply", _pair_fault(found, "payload"))
        payload, after = found
        wrong = payload_fault(payload) or _tensors_fault(after, "the client's state")
        if not wrong and payload.sender != context.client:
            wrong = f"returns a payload from {payload.sender}; it must be Payload(parts, context.client)"
        _refuse("reply", wrong)
    return payload, after


# ── what may be wrong: each function returns the fault, "" if there is none ──────────────────────────────────────
def declaration_fault(task: Any) -> str:
    """What is wrong with a task's fields."""
    if not isinstance(task, ClientTask):
        return f"is {kind(task)}; it must be a ClientTask"
    words = {"mask_stage": MaskStage, "averaged_by": Weighting}
    for name, allowed in words.items():
        if getattr(task, name) not in (None, *get_args(allowed)):
            return f"has {name}={getattr(task, name)!r}; allowed: None, {', '.join(get_args(allowed))}"
    if not isinstance(task.evaluate, tuple) or set(task.evaluate) - set(get_args(Moment)):
        return f"has evaluate={task.evaluate!r}; it must be a tuple of {' and '.join(get_args(Moment))}"
    for name, wanted in (("fit", FitSpec), ("probe", Probe)):
        if not isinstance(getattr(task, name), (wanted, type(None))):
            return f"has {name}={getattr(task, name)!r:.40}; it must be a {wanted.__name__} or None"
    optional = [name for name in HOOKS if getattr(task, name) is not None]
    wrong = [name for name in ("receive", "reply", *optional) if not callable(getattr(task, name))]
    return f"has {wrong[0]}={getattr(task, wrong[0])!r:.40}; it must be a function" if wrong else ""


def work_fault(task: ClientTask, work: Any, layout: Layout) -> str:
    """What is wrong with the tensors that `receive` returned."""
    wrong = _tensors_fault(work, "the work")
    needed = [*task.updates, *([MASK] if task.fit is not None and task.mask_stage is not None else [])]
    if task.fit is not None or task.probe is not None or task.evaluate:
        needed.insert(0, THETA)
    lacking = [] if wrong else [name for name in needed if name not in work]
    if lacking:
        return f'returns a work without "{lacking[0]}"; it has {", ".join(work) or "no tensors"}'
    lengths = {THETA: (layout.size, "P", False), MASK: (layout.trained_size, "T", True)}
    for name, length in () if wrong else lengths.items():
        fault = vector_fault(work[name], *length) if name in needed else ""
        wrong = wrong or (f'returns work["{name}"] as {fault}' if fault else "")
    return wrong


def payload_fault(payload: Any) -> str:
    """What is wrong with a message."""
    if not isinstance(payload, Payload):
        return f"returns {kind(payload)} as payload; it must be Payload(parts, context.client)"
    if not isinstance(payload.parts, Mapping):
        return f"returns a payload with parts={kind(payload.parts)}; it must be a dict of parts by name"
    for name, part in payload.parts.items():
        if not isinstance(part, Part):
            how = ": wrap it, such as DenseValues(tensor)" if isinstance(part, Tensor) else ""
            return f"returns a payload whose part {name!r} is {kind(part)}, not a Part of ssfl.core.payloads{how}"
    return ""


def plan_fault(plan: Any, clock: Clock, context: ServerContext, tasks: Mapping[str, ClientTask]) -> str:
    """What is wrong with a round's plan."""
    if plan is None:
        return ""
    if not isinstance(plan, RoundPlan):
        return f"returns {kind(plan)}; it must be a RoundPlan, or None when the run is finished"
    if plan.phase not in tasks:
        return f"plans phase {plan.phase!r}; tasks has {', '.join(tasks)}"
    if plan.clock != clock:
        return f"plans for {plan.clock}; it must pass on the clock that it was given, {clock}"
    if plan.timed and clock.round > clock.total:
        return f"plans a training round after the last of {clock.total}; return None if clock.round > clock.total"
    if not isinstance(plan.instructions, (tuple, list)):
        return f"plans with instructions={kind(plan.instructions)}; it must be a tuple of Instruction"
    if not plan.instructions and not plan.timed:
        return f"plans phase {plan.phase} for no client; only a training round may have none"
    for one in plan.instructions:
        if fault := _instruction_fault(one, context):
            return fault
    clients = [one.client for one in plan.instructions]
    if len(set(clients)) == len(clients):
        return ""
    twice = next(client for client in clients if clients.count(client) > 1)
    return f"plans two instructions for client {twice}; put its messages into one inbox"


def _instruction_fault(one: Any, context: ServerContext) -> str:
    if not isinstance(one, Instruction):
        return f"plans with {kind(one)} among its instructions; it must be an Instruction"
    if one.client not in context.example_counts:
        return f"plans for client {one.client!r}; clients are 0 to {max(context.example_counts)} (context.clients)"
    if not isinstance(one.inbox, (tuple, list)):
        return f"plans with inbox={kind(one.inbox)}; it must be a tuple of payloads: (message,)"
    faults = (payload_fault(message) for message in one.inbox if not isinstance(message, PeerModel))
    return next((fault.replace("returns", "sends", 1) for fault in faults if fault), "")


def _pair_fault(found: Any, first: str) -> str:
    good = isinstance(found, tuple) and len(found) == 2
    return "" if good else f"returns {kind(found)}; it must return two values: {first}, the client's state"


def _tensors_fault(found: Any, name: str) -> str:
    if not isinstance(found, Mapping):
        return f"returns {kind(found)} as {name}; it must be a dict of tensors by name"
    wrong = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    return f"returns {name} with {wrong[0]!r} as {kind(found[wrong[0]])}, not a tensor" if wrong else ""


def vector_fault(found: Any, length: int, letter: str, boolean: bool) -> str:
    """What is wrong with a vector of `length` coordinates, bool or float."""
    right = isinstance(found, Tensor) and found.shape == (length,)
    if right and (found.dtype == torch.bool if boolean else found.is_floating_point()):
        return ""
    return f"{kind(found)}; it must be a tensor of {'bool' if boolean else 'floats'} [{letter} = {length}]"


def refuse_vector(where: str, found: Any, size: int, boolean: bool) -> None:
    """Raises MethodFault if `found`, which `where` returned, is neither a vector [P] of bool or floats nor None."""
    fault = "" if found is None else vector_fault(found, size, "P", boolean)
    _refuse(where, f"returns {fault}, or None" if fault else "")


def kind(value: Any) -> str:
    """A value as a fault describes it: type and shape of a tensor, a short text of others."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{value!r:.40}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _refuse(where: str, fault: str) -> None:
    if fault:
        raise MethodFault(f"{where} {fault}")


@contextlib.contextmanager
def named(where: str, others: Sequence[Exception] = ()) -> Iterator[None]:
    """Errors of the method's code become a MethodFault; those in `others` are not the method's."""
    try:
        yield
    except (EngineError, Cancelled):
        raise
    except Exception as error:
        if any(error is other for other in others):
            raise
        raise MethodFault(f"{where} fails: {described(error)}") from error


@contextlib.contextmanager
def _of_client(function: str, phase: str, context: ClientContext) -> Iterator[None]:
    """A fault in a client's work becomes a ClientError with its place."""
    try:
        yield
    except MethodFault as fault:
        raise ClientError(place_of(context, phase), str(fault), trace=traceback.format_exc()) from fault


@contextlib.contextmanager
def _unchanged(where: str, name: str, value: Any) -> Iterator[None]:
    """Raises MethodFault if a tensor in `value` is written in place."""
    before = [(one, one._version) for one in tensors_of(value)]
    yield
    if any(one._version != version for one, version in before):
        raise MethodFault(f"{where} changes {name} in place; compute a new tensor instead, or clone it first")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if not value.is_inference():  # those do not count their changes
            yield value
    elif isinstance(value, Mapping):
        yield from _all_tensors(value.values())
    elif isinstance(value, (tuple, list)):
        yield from _all_tensors(value)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _all_tensors(getattr(value, one.name) for one in fields(value))


def _all_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        yield from tensors_of(value)


def described(error: Exception) -> str:
    """The type and text of an error in one line, and the line of the method's file where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(ssfl.__file__).parent), str(Path(torch.__file__).parents[1]))
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
