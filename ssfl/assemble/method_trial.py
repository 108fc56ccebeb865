"""A trial of a method from outside the package, before a run writes files: its first exchanges without training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import (
    THETA,
    ClientContext,
    ClientState,
    ClientTask,
    RoundPlan,
    ServerContext,
    Work,
)
from ssfl.assemble.checked_method import (
    CheckedMethod,
    MethodFault,
    described,
    kind,
    named,
    refuse_vector,
    tensors_of,
    vector_fault,
)
from ssfl.assemble.rehearsal import Rehearsed, rehearse
from ssfl.config import Config
from ssfl.config.validate import refuse
from ssfl.core.net import FlatNet
from ssfl.core.payloads import Payload
from ssfl.core.reading import WireError
from ssfl.engine.client.errors import EngineError
from ssfl.engine.executors.task_trial import made_up_batch, prepared
from ssfl.engine.state.checkpoint import COMMON_RECORDS
from ssfl.engine.state.serialization import Packer, unpack
from ssfl.engine.state.typed import check_types
from ssfl.wire.stack import WireStack, task_state

ROUNDS = 2
"""Training rounds of the trial."""
MOST_EXCHANGES = 8
MOST_VALUES = 30_000_000
"""Coordinates of all clients' models in one exchange; a larger one is the last, with its first clients only."""


@final
@dataclass(frozen=True)
class Bench:
    """The network that a method is tried on, and the shape and type of its inputs (None: floats)."""

    module: nn.Module
    input_shape: tuple[int, ...]
    dtype: torch.dtype | None


def try_method(
    config: Config,
    algorithm: CheckedMethod,
    bench: Bench,
    theta: Tensor,
    context: ServerContext,
    wire: WireStack,
) -> None:
    """Raises ConfigError, in one line, if the method fails in its first exchanges or returns wrong values."""
    try:
        with torch.random.fork_rng(devices=[]), _attributes_unchanged(algorithm.inner):
            _try(algorithm, bench, theta, context, wire, config.training.comm_round)
    except (EngineError, WireError) as fault:
        raise refuse("algorithm.name", config.algorithm.name, str(fault)) from fault


def _try(
    algorithm: CheckedMethod,
    bench: Bench,
    theta: Tensor,
    context: ServerContext,
    wire: WireStack,
    rounds: int,
) -> None:
    works: dict[str, Work] = {}
    plans: list[RoundPlan] = []
    clients = max(MOST_VALUES // context.layout.size, 1)

    def shortened(plan: RoundPlan) -> RoundPlan | None:
        # After a shortened exchange, the other clients lack what the first ones received.
        cut = any(len(one.instructions) > clients for one in plans)
        plans.append(plan)
        if cut or plan.clock.round > ROUNDS or len(plans) > MOST_EXCHANGES:
            return None
        return replace(plan, instructions=tuple(plan.instructions[:clients]))

    tasks = {phase: _recording(works, phase, task) for phase, task in algorithm.tasks.items()}
    for one in rehearse(replace(algorithm, tasks=tasks), theta, context, wire, rounds, shortened):
        task = algorithm.tasks[one.plan.phase]
        _check_state(algorithm, one.after)
        _check_model(algorithm, one, theta, context)
        _check_kept_models(task, one, context)
        if (work := works.pop(one.plan.phase, None)) is not None and task.fit is not None:
            _check_hooks(task, work, bench, context)
    if rounds and not plans:
        raise MethodFault("configure_round returns None before the first round: nothing would be trained")


@contextlib.contextmanager
def _attributes_unchanged(method: Any) -> Iterator[None]:
    """Raises MethodFault if an attribute of the instance changes: no checkpoint would contain it."""
    before = _attributes(method)
    yield
    after = _attributes(method)
    changed = [name for name in after if name not in before or not _is_same(before[name], after[name])]
    if changed:
        raise MethodFault(
            f"self.{changed[0]} changes between calls; put it into the state, or a resumed run loses it (a value that "
            "is computed once may be a functools.cached_property)"
        )


def _attributes(method: Any) -> dict[str, tuple[Any, list[Any], list[int]]]:
    """Of each attribute: the object, what it contains, and how often its tensors were written."""
    found = {}
    for name, value in getattr(method, "__dict__", {}).items():
        if isinstance(getattr(type(method), name, None), cached_property):
            continue
        inside = [*value.keys(), *value.values()] if isinstance(value, Mapping) else []
        inside = list(value) if isinstance(value, (list, tuple, set, frozenset)) else inside
        found[name] = (value, inside, [tensor._version for tensor in tensors_of(value)])
    return found


def _is_same(before: tuple[Any, list[Any], list[int]], after: tuple[Any, list[Any], list[int]]) -> bool:
    same = before[0] is after[0] and before[2] == after[2] and len(before[1]) == len(after[1])
    return same and all(one is other for one, other in zip(before[1], after[1], strict=True))


def _recording(works: dict[str, Work], phase: str, task: ClientTask) -> ClientTask:
    """The task; keeps the work of its first client in `works`."""

    def receive(
        inbox: Sequence[Payload], memory: ClientState, context: ClientContext
    ) -> tuple[Work, ClientState]:
        work, after = task.receive(inbox, memory, context)
        works.setdefault(phase, work)
        return work, after

    return replace(task, receive=receive)


def _check_state(algorithm: CheckedMethod, state: Any) -> None:
    """Raises MethodFault if a checkpoint could not store the state, or a resumed run not read it."""
    packer = Packer()
    try:
        written = json.dumps(packer.pack(state))
        found = unpack(json.loads(written), packer.tensors, (*COMMON_RECORDS, *algorithm.records))
        wrong = _other_type(state, found, "the state")
        if is_dataclass(found) and not wrong:
            check_types(found)
    except Exception as error:
        listed = ", ".join(kind.__name__ for kind in algorithm.records) or "nothing"
        what = f"a checkpoint of the state cannot be read ({described(error)})"
        raise MethodFault(
            f"{what}; records lists {listed}: it must list every dataclass in the state"
        ) from error
    if wrong:
        raise MethodFault(f"a checkpoint of the state cannot be read: {wrong}")


def _other_type(stored: Any, found: Any, where: str) -> str:
    """The first value that has another type after it was read from a checkpoint; "" if there is none."""
    alike = isinstance(stored, (Tensor, torch.Size, MappingProxyType)) or (
        isinstance(stored, float) and type(found) is float  # NumPy's
    )
    if type(stored) is not type(found) and not alike:
        return f"{where} is a {type(stored).__name__}, and is read as a {type(found).__name__}; use that type"
    pairs: list[tuple[Any, Any, str]] = []
    if is_dataclass(stored):
        names = [one.name for one in fields(stored) if one.metadata.get("saved", True)]
        pairs = [(getattr(stored, name), getattr(found, name), f"{where}.{name}") for name in names]
    elif isinstance(stored, Mapping):
        pairs = [(stored[key], found[key], f"{where}[{key!r:.40}]") for key in stored]
    elif isinstance(stored, (tuple, list)):
        pairs = [(one, found[number], f"{where}[{number}]") for number, one in enumerate(stored)]
    return next((text for pair in pairs if (text := _other_type(*pair))), "")


def _check_model(algorithm: CheckedMethod, one: Rehearsed, theta: Tensor, context: ServerContext) -> None:
    """Raises MethodFault if the global model after an exchange has another type or values that are not finite."""
    algorithm.global_mask(one.after, context)
    model = algorithm.weights_to_evaluate(one.after, context)
    if model is None:
        return
    if model.dtype != theta.dtype:
        raise MethodFault(f"weights_to_evaluate returns {model.dtype}; the initial model is {theta.dtype}")
    if not bool(model.isfinite().all()):
        what = "the global model is not finite, although the weights after training were"
        raise MethodFault(f"{what}: look for the cause in reply or aggregate of phase {one.plan.phase}")


def _check_kept_models(task: ClientTask, one: Rehearsed, context: ServerContext) -> None:
    if task.kept_model is None:
        return
    for memory in one.exchange.client_memories().values():
        with named("kept_model"):
            model = task.kept_model(task_state(memory.load().state))
        refuse_vector("kept_model", model, context.layout.size, boolean=False)


def _check_hooks(task: ClientTask, work: Work, bench: Bench, context: ServerContext) -> None:
    """Call the task's hooks once at the received weights, on copies. Raises MethodFault if one fails."""
    size = context.layout.trained_size
    own = {name: tensor.clone() for name, tensor in work.items()}
    theta = own.pop(THETA)[:size]
    gradient = theta.abs().mul_(0.01).add_(1e-3)
    calls: dict[str, tuple[Any, ...]] = {
        "transform_gradient": (gradient, theta, own),
        "project_weights": (theta.clone(), own),
        "effective_weights": (theta, own),
    }
    for name, arguments in calls.items():
        if (hook := getattr(task, name)) is None:
            continue
        with named(name), torch.no_grad():
            found = hook(*arguments)
        if fault := vector_fault(found, size, "T", False):
            raise MethodFault(f"{name} returns {fault}")
        if not bool(found.isfinite().all()):
            raise MethodFault(f"{name} returns values that are not finite, for finite weights and gradients")
    if task.objective is not None:
        _check_objective(task, work, bench, context)


def _check_objective(task: ClientTask, work: Work, bench: Bench, context: ServerContext) -> None:
    """Compute the task's loss on random examples. Raises MethodFault if it is no scalar with a gradient."""
    net = FlatNet(prepared(task, bench.module).train(), context.layout)
    batch = made_up_batch(bench.module, bench.input_shape, bench.dtype)
    others = {name: tensor.clone() for name, tensor in work.items() if name != THETA}
    theta = work[THETA][: context.layout.trained_size].clone().requires_grad_()
    with named("objective"):
        loss: Any = task.loss(net, theta, others, batch, net.statistics(work[THETA]))
    if not (isinstance(loss, Tensor) and loss.shape == () and loss.requires_grad):
        raise MethodFault(
            f"objective returns {kind(loss)}; it must be a tensor of one value computed from theta"
        )
