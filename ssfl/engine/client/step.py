"""The local update after the gradient, the same in every executor and for any number of clients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ssfl.algorithms.base import MASK, ClientTask, Work
from ssfl.core.masks import keep_
from ssfl.core.optim import FitSpec, sgd_step_

Update = Callable[[Tensor, Tensor, Tensor | None], None]
"""(theta [..., T], gradient [..., T], velocity) -> None: clipping, weight decay, momentum, step; in place."""


def local_step_(
    task: ClientTask, theta: Tensor, gradient: Tensor, velocity: Tensor | None, work: Work, update: Update
) -> None:
    """transform_gradient -> mask -> update -> project_weights -> mask, in place on theta [..., T]."""
    if task.transform_gradient is not None:
        gradient = task.transform_gradient(gradient, theta, work)
    if task.mask_stage == "before_clip":
        gradient = keep_(gradient, work[MASK])
    update(theta, gradient, velocity)
    if task.project_weights is not None:
        projected = task.project_weights(theta, work)
        if projected is not theta:
            theta.copy_(projected)
    if task.mask_stage == "after_step":
        keep_(theta, work[MASK])


def sgd(spec: FitSpec, lr: float) -> Update:
    """SGD with one learning rate."""

    def update(theta: Tensor, gradient: Tensor, velocity: Tensor | None) -> None:
        sgd_step_(theta, gradient, velocity, spec, lr)

    return update
