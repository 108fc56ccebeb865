"""A method's tasks are tried on a network before a run: prepared layers, own losses, saliencies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssfl.algorithms.base import MASK, THETA, ClientTask, Probe, ServerContext
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.core.layout import Layout
from ssfl.core.net import Batch, FlatNet
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP, SYNFLOW, Saliency
from ssfl.engine.executors.task_trial import (
    TaskError,
    check_tasks,
    first_works,
    loss_gradient,
    made_up_batch,
    needs_works,
)

FIT = FitSpec(epochs=1, batch_size=4, schedule=ExponentialDecay(0.1, 1.0))
SHAPE = (1, 6, 6)


def unused(*_: object) -> object:
    raise AssertionError("a trial receives and sends nothing here")


def unserved(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    raise RuntimeError("no derivative\nhere")


def task(saliency: Saliency | None = None, fit: FitSpec | None = None) -> ClientTask:
    probe = None if saliency is None else Probe(saliency)
    return ClientTask(unused, unused, fit=fit, probe=probe)  # type: ignore[arg-type]


class BatchStatistics(nn.Module):
    """Needs two examples in training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(36, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x.flatten(1)))))


class Plain(nn.Module):
    """A linear layer in a custom class."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.flatten(1))


class Particular(nn.Module):
    """Checks the class of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.a, nn.Conv2d)
        return self.b(F.relu(self.a(x)).flatten(1))


def circular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(72, 3)
    )


@pytest.mark.parametrize(
    ("module", "tasks", "said"),
    [
        (BatchStatistics(), {"score": task(SYNFLOW)}, "phase score .*more than 1 value per channel"),
        (Plain(), {"score": task(Saliency(of_network=unserved))}, "phase score .*no derivative"),
        (Particular(), SparsyFed(FIT, 1, 0.5).tasks, "phase train .*AssertionError"),
        (circular(), SparsyFed(FIT, 1, 0.5).tasks, "phase train .*padding_mode='circular'"),
    ],
)
def test_what_a_task_cannot_do_is_one_line(
    module: nn.Module, tasks: dict[str, ClientTask], said: str
) -> None:
    with pytest.raises(TaskError, match=said) as found:
        check_tasks(module, SHAPE, None, tasks, {})
    assert "\n" not in str(found.value)
    assert found.value.probes == ("score" in tasks)


@pytest.mark.parametrize("module", [BatchStatistics(), Plain(), Particular(), circular()])
def test_a_trial_passes_and_changes_nothing(module: nn.Module) -> None:
    state, drawn = Layout.of(module).flatten(module).clone(), torch.default_generator.get_state()
    tasks = {"score": task(SNIP), "train": task(fit=FIT)}
    check_tasks(module, SHAPE, None, tasks, {})
    assert Layout.of(module).flatten(module).equal(state)
    assert torch.default_generator.get_state().equal(drawn)


def test_a_loss_that_fails_is_found_where_its_tensors_are_known() -> None:
    def objective(net: FlatNet, theta: Tensor, work: object, batch: object, statistics: object) -> Tensor:
        raise RuntimeError("no such loss")

    own = replace(task(fit=FIT), objective=objective)
    theta = Layout.of(Plain()).flatten(Plain())
    assert needs_works({"train": own}, Plain())
    assert not needs_works({"train": own}, circular())
    check_tasks(Plain(), SHAPE, None, {"train": own}, {})
    with pytest.raises(TaskError, match="no such loss"):
        check_tasks(Plain(), SHAPE, None, {"train": own}, {"train": {THETA: theta}})


def test_the_first_work_is_what_a_client_receives_first() -> None:
    module = Plain()
    layout, theta = Layout.of(module), Layout.of(module).flatten(module)
    algorithm = SparsyFed(FIT, 1, 0.5, reinitialise=False)
    works = first_works(algorithm, theta, ServerContext(layout, {0: 5, 1: 5}, 1), 3)
    assert works.keys() == {"train"}
    assert works["train"][THETA].equal(theta)
    assert works["train"][MASK].equal(theta != 0)


def test_the_gradient_is_that_of_the_tasks_loss() -> None:
    """The gradient of half the squared weights is the weights."""

    def objective(net: FlatNet, theta: Tensor, work: object, batch: object, statistics: object) -> Tensor:
        return theta.square().sum() / 2

    module = Plain()
    layout = Layout.of(module)
    theta = layout.flatten(module)
    batch = made_up_batch(module, SHAPE, None)
    own = replace(task(fit=FIT), objective=objective)
    assert loss_gradient(FlatNet(module, layout), own, {THETA: theta}, batch).allclose(theta)
