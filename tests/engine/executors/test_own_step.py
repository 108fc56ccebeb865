"""The measured step of a method with its own layers or loss is the step that the executors compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ssfl.algorithms.base import THETA
from ssfl.assemble.measurement import measured, own_step
from ssfl.core.net import FlatNet, trained_gradient
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.executors import timing
from ssfl.engine.executors.batched.network import BlockNet
from ssfl.engine.executors.own_step import OwnStep
from ssfl.engine.executors.task_trial import loss_gradient, made_up_batch
from ssfl.engine.executors.timing import time_steps
from ssfl.native import available
from tests.support.assembled import run_setup

pytestmark = pytest.mark.usefixtures("two_steps")


def test_a_methods_own_step_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SparsyFed trains its own layers and loss, in blocks with vmap: both count as in the executors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    called: list[str] = []
    counted_calls(monkeypatch, called)
    measured(run_setup("algorithm=sparsyfed"), 16, 2, 1)
    assert set(called) == {"own", "own block"}
    called.clear()
    measured(run_setup("algorithm=fedavg"), 16, 2, 1)
    assert set(called) == {"plain", "plain block"}


def counted_calls(monkeypatch: pytest.MonkeyPatch, called: list[str]) -> None:
    """Record which steps are timed."""
    for place, attribute, name in (
        (timing, "plain_step", "plain"),
        (timing, "plain_block_step", "plain block"),
        (OwnStep, "alone", "own"),
        (OwnStep, "together", "own block"),
    ):
        original = getattr(place, attribute)

        def counted(*arguments: Any, _original: Any = original, _name: str = name) -> Any:
            called.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(place, attribute, counted)


@pytest.mark.parametrize("method", ["sparsyfed", "sparsyfed algorithm.params.prune_activations=false"])
def test_the_timed_step_is_the_executors(method: str) -> None:
    """One client's gradient is the runner's (`own_loss_gradient`), checked here by autograd; blocks agree with it."""
    setup = run_setup(*f"algorithm={method}".split())
    own = own_step(setup)
    assert own is not None
    assert own.work is not None
    batch = made_up_batch(setup.module, setup.federation.input_shape, None)
    expected = loss_gradient(
        FlatNet(own.prepared(setup.module).train(), setup.layout), own.task, own.work, batch
    )
    flat = FlatModule(own.prepared(setup.module).train(), setup.layout)
    flat.load(own.start(flat.module, setup.layout))
    own.alone(flat, batch)()
    assert flat.gradient.equal(expected)
    theta = torch.stack([own.work[THETA]] * 2)
    net = BlockNet(own.prepared(setup.module).train(), setup.layout)
    x, y = (torch.stack([t] * 2, 1) for t in batch)
    _, gradient = cast(tuple[Tensor, Tensor], own.together(net, theta, (x, y))())
    for client in gradient:
        torch.testing.assert_close(client, expected, rtol=1e-3, atol=1e-5)


def test_work_that_is_unknown_before_the_run_is_timed_with_the_networks_loss() -> None:
    """Tensors of a later phase depend on replies."""
    setup = run_setup("algorithm=sparsyfed")
    own = OwnStep.of(setup.algorithm.tasks, {})
    assert own is not None
    flat = FlatModule(own.prepared(setup.module).train(), setup.layout)
    batch = made_up_batch(setup.module, setup.federation.input_shape, None)
    own.alone(flat, batch)()
    net = FlatNet(own.prepared(setup.module).train(), setup.layout)
    expected = trained_gradient(net, setup.layout.flatten(setup.module), batch)
    assert flat.gradient.equal(expected)


def test_every_form_of_an_own_step_is_timed() -> None:
    setup = run_setup("algorithm=sparsyfed")
    shape = setup.federation.input_shape
    own = own_step(setup)
    times = time_steps(setup.module, shape, 8, block=2, workers=2, native=available(), own=own)
    assert None not in (times.channels_last, times.batched, times.threaded)
    if available():
        assert None not in (times.mixed, times.winograd, times.plain)
