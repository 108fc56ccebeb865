"""A trial step on a copy: the errors that it finds, and no changes to the network."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssfl.core.tensor_roles import LayoutError
from ssfl.engine.executors.trial import UntrainableError, check_constants, check_step
from tests.support.networks import NETWORKS, Base, View

SHAPE = (1, 6, 6)


class Counting(Base):
    """Counts its steps in an integer buffer."""

    def extra(self) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def middle(self, h: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return h / (1 + self.steps)


class Teacher(Base):
    """Updates a frozen copy of its weights without the optimiser."""

    def extra(self) -> None:
        self.slow = nn.Linear(8, 8).requires_grad_(False)
        self.fast = nn.Linear(8, 8)

    def middle(self, h: Tensor) -> Tensor:
        if self.training:
            self.slow.weight.data.mul_(0.9).add_(self.fast.weight.data, alpha=0.1)
        return self.fast(h) - self.slow(h)


@pytest.mark.parametrize(("kind", "name"), [(Counting, "steps"), (Teacher, "slow.weight")])
def test_state_that_cannot_be_carried_is_refused_by_name(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(LayoutError, match=f"training changes {name} "):
        check_constants(kind(), SHAPE)


class Skipping(Base):
    """Skips a layer at random in training."""

    drawn: Callable[[], float]

    def middle(self, h: Tensor) -> Tensor:
        return h if self.training and self.drawn() < 0.5 else torch.tanh(h)


@pytest.mark.parametrize(
    "drawn", [lambda: random.random(), lambda: np.random.random(), lambda: np.random.randn()]
)
def test_draws_that_no_seed_reaches_are_refused(drawn: Callable[[], float]) -> None:
    module = Skipping()
    module.drawn = drawn  # a function: a bound method would be copied together with its generator
    with pytest.raises(
        LayoutError, match="global generator, which the run's seed does not set; draw with torch"
    ):
        check_constants(module, SHAPE)
    module.drawn = lambda: float(torch.rand(()))
    check_constants(module, SHAPE)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_passes_and_is_as_before(name: str) -> None:
    module = NETWORKS[name]()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    draws = torch.default_generator.get_state()
    check_constants(module, SHAPE)
    check_step(module, SHAPE)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert torch.default_generator.get_state().equal(draws)


def test_a_view_of_images_with_channels_last_fails_in_one_line() -> None:
    check_step(View(), SHAPE)
    with pytest.raises(UntrainableError, match="view size is not compatible") as found:
        check_step(View(), SHAPE, last=True)
    assert "\n" not in str(found.value)
