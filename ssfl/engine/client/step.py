"""The local update after the gradient, the same in every executor and for any number of clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ssfl.algorithms.base import MASK, ClientTask, Work
from ssfl.core.masks import keep_
from ssfl.core.optim import FitSpec, sgd_step_

Update = Callable[[Tensor, Tensor, Tensor | None], None]
"""(theta [..., T], gradient [..., T], velocity) -> None: clipping, weight decay, momentum, step; in place."""


def local_step_(
    task: ClientTask,
    theta: Tensor,
    gradient: Tensor,
    velocity: Tensor | None,
    work: Work,
    update: Update,
    unused: Sequence[slice] = (),
) -> None:
    """transform_gradient -> mask -> update -> project_weights -> mask, in place on theta [..., T].

    unused: coordinates of parameters on which the loss of this step does not depend. Their weights and velocity stay,
    as with torch.optim, which skips parameters without a gradient.
    """
    vectors = (theta,) if velocity is None else (theta, velocity)
    kept = [(vector[..., at], vector[..., at].clone()) for at in unused for vector in vectors]
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
    for place, value in kept:
        place.copy_(value)


def sgd(spec: FitSpec, lr: float) -> Update:
    """SGD with one learning rate."""

    def update(theta: Tensor, gradient: Tensor, velocity: Tensor | None) -> None:
        sgd_step_(theta, gradient, velocity, spec, lr)

    return update
