"""Local SGD as one step on flat vectors [..., T], and the two learning-rate schedules of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_'s guard against a zero norm


@dataclass(frozen=True)
class ExponentialDecay:
    """lr * decay ** (round - 1 + first_exponent), constant inside a round (`optimizer.scheduler=default`).

    Rounds count from 1, as in SSFL's code: exponent 1 in the first round. In DisPFL's code rounds count from 0.
    """

    lr: float
    decay: float
    first_exponent: int = 1

    def __call__(self, round: int, epoch: int) -> float:
        return self.lr * self.decay ** (round - 1 + self.first_exponent)


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine from lr to `floor` over `cycle_epochs` local epochs, restarted in every round.

    The paper's CIFAR-100 recipe: CosineAnnealingWarmRestarts(T_0=10, eta_min=1e-5), stepped once per local
    epoch and re-created in every round.
    """

    lr: float
    cycle_epochs: int
    floor: float = 1e-5

    def __call__(self, round: int, epoch: int) -> float:
        phase = math.pi * (epoch % self.cycle_epochs) / self.cycle_epochs
        return self.floor + (self.lr - self.floor) * (1 + math.cos(phase)) / 2


@dataclass(frozen=True)
class GeometricDecay:
    """lr * (final_lr / lr) ** (round / rounds): SparsyFed's schedule, constant inside a round.

    Rounds count from 1, so the first round has one step of decay (0.4961 for 0.5 to 0.01 over 500 rounds).
    """

    lr: float
    final_lr: float
    rounds: int

    def __call__(self, round: int, epoch: int) -> float:
        return self.lr * (self.final_lr / self.lr) ** (round / self.rounds)


Schedule = Callable[[int, int], float]


@dataclass(frozen=True)
class FitSpec:
    """One client's local training with SGD, as used by every method."""

    epochs: int
    """Passes over the client's own examples in one round."""
    batch_size: int
    """Examples in a minibatch; the last, smaller one of an epoch is used too."""
    schedule: Schedule
    """Learning rate from (round, local epoch); rounds count from 1, epochs from 0."""
    momentum: float = 0.0
    """Heavy-ball factor (0-1); the velocity starts at zero in every round."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, as torch.optim.SGD does."""
    clip_norm: float | None = None
    """Largest L2 norm of the whole gradient, after the method's own transform; None: no clipping."""


def clip_coefficient(gradient: Tensor, clip_norm: float) -> Tensor:
    """min(1, clip_norm / (norm + 1e-6)) per row of [..., T], shape [..., 1]; torch's clip_grad_norm_ rule."""
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return (clip_norm / (norm + CLIP_EPS)).clamp_max(1.0)


def sgd_step_(theta: Tensor, gradient: Tensor, velocity: Tensor | None, spec: FitSpec, lr: float) -> None:
    """Clip, decay, momentum, step; in place on `theta [..., T]`; overwrites `gradient`.

    Equal to clip_grad_norm_ followed by torch.optim.SGD(lr, momentum, weight_decay) up to rounding: the scaled
    additions are the same, only their grouping differs (without momentum the decay multiplies theta by
    1 - lr * weight_decay, which saves a pass over memory). `velocity` is None exactly when momentum is 0.
    """
    if spec.clip_norm is not None:
        gradient.mul_(clip_coefficient(gradient, spec.clip_norm))
    if velocity is None:
        if spec.weight_decay:
            theta.mul_(1.0 - lr * spec.weight_decay)
        theta.add_(gradient, alpha=-lr)
        return
    if spec.weight_decay:
        gradient.add_(theta, alpha=spec.weight_decay)
    velocity.mul_(spec.momentum).add_(gradient)
    theta.add_(velocity, alpha=-lr)
