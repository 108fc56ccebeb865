"""Local SGD and schedules against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec, clip_coefficient, sgd_step_


@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 5e-4, 0.1]),
    clip=st.sampled_from([None, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 20),
)
def test_steps_equal_torch_sgd(momentum: float, decay: float, clip: float | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(17, generator=generator, dtype=torch.float64)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    velocity = torch.zeros_like(ours) if momentum else None
    spec = FitSpec(1, 1, ExponentialDecay(0.1, 1.0), momentum, decay, clip)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=momentum, weight_decay=decay)
    for lr in (0.3, 0.3, 0.1, 0.1):
        gradient = torch.randn(17, generator=generator, dtype=torch.float64)
        theirs.grad = gradient.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([theirs], clip)
        sgd.param_groups[0]["lr"] = lr
        sgd.step()
        sgd_step_(ours, gradient, velocity, spec, lr)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-13)


def test_a_block_of_clients_steps_like_each_alone() -> None:
    block = torch.randn(4, 9, dtype=torch.float64)
    gradients = torch.randn(4, 9, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [10.0], [0.0]])
    spec = FitSpec(1, 1, ExponentialDecay(0.1, 1.0), 0.9, 5e-4, 1.0)
    alone = block.clone()
    for k in range(4):
        sgd_step_(alone[k], gradients[k].clone(), torch.zeros(9, dtype=torch.float64), spec, 0.1)
    sgd_step_(block, gradients.clone(), torch.zeros_like(block), spec, 0.1)
    torch.testing.assert_close(block, alone, rtol=1e-13, atol=1e-15)


def test_clip_coefficient_by_hand() -> None:
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    got = clip_coefficient(gradient, 2.0).squeeze(1).tolist()
    assert got == pytest.approx([2.0 / (5.0 + 1e-6), 1.0, 1.0], rel=1e-12)


def test_default_schedule_is_constant_in_a_round_and_counts_from_1() -> None:
    schedule = ExponentialDecay(0.1, 0.998)
    assert schedule(1, 0) == schedule(1, 4) == pytest.approx(0.0998)
    assert schedule(3, 0) == pytest.approx(0.09940119920000001, rel=1e-15)


@pytest.mark.parametrize("cycle", [3, 10])
def test_cosine_equals_torch_stepped_per_epoch_and_made_anew_each_round(cycle: int) -> None:
    schedule = CosineRestarts(0.1, cycle)
    for round_ in (1, 2, 7):
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=cycle, eta_min=1e-5)
        for epoch in range(2 * cycle + 1):
            assert schedule(round_, epoch) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
            sgd.step()
            theirs.step()
