"""Scores of how much each weight matters, from one minibatch: (net, theta [P], batch) -> scores [T].

The caller sets the module's train or eval mode; `CRITERIA` says which one a criterion wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssfl.core.net import Batch, FlatNet, trained_gradient

Saliency = Callable[[FlatNet, Tensor, Batch], Tensor]


def gradient(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """dL/dw, signed [T]: what dynamic sparse training grows by (RigL, Evci et al. 2020, section 3)."""
    return trained_gradient(net, theta, batch)


def snip(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """|dL/dw * w| with mean cross-entropy (SNIP, Lee et al. 2019, eq. 6; SSFL's saliency).

    First-order change of the loss when a weight is removed. Not normalised per client, as in the authors' code.
    """
    return (trained_gradient(net, theta, batch) * theta[: net.layout.trained_size]).abs()


def snip_raw_logits(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """|dL/dw * w| with L the negative log-likelihood of the RAW logits: the ancestor's `ssfl_aux` score.

    The loss lacks the log-softmax, so its gradient with respect to the logits is the constant -onehot / B.
    The ancestor takes the gradient of an all-ones mask variable c; |dL/dc| equals |dL/dw * w|.
    """
    size = net.layout.trained_size
    leaf = theta[:size].detach().clone().requires_grad_()
    logits = net.logits(leaf, batch[0], net.statistics(theta))
    loss = -logits.gather(1, batch[1][:, None]).mean()
    (out,) = torch.autograd.grad(loss, leaf)
    return (out * theta[:size]).abs()


def grasp(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """w * (H g), larger is kept (GraSP, Wang et al. 2020, eq. 8, its sign turned so that the best are largest)."""
    size = net.layout.trained_size
    leaf = theta[:size].detach().clone().requires_grad_()
    loss = net.loss(leaf, batch, net.statistics(theta))
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (hg,) = torch.autograd.grad((g * g.detach()).sum(), leaf)
    return theta[:size] * hg


def synflow(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """|w| * d(sum of outputs on an all-ones input)/d|w| (SynFlow, Tanaka et al. 2020, eq. 1); no data is read."""
    size = net.layout.trained_size
    leaf = theta[:size].detach().abs().requires_grad_()
    ones = torch.ones_like(batch[0][:1])
    total = net.logits(leaf, ones, net.statistics(theta)).sum()
    (out,) = torch.autograd.grad(total, leaf)
    return (out * leaf).detach()


def magnitude(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    """|w|: the criterion that needs no data and, at a random start, knows nothing."""
    return theta[: net.layout.trained_size].abs()


@dataclass(frozen=True)
class Criterion:
    """A saliency and the mode it is defined in."""

    score: Saliency
    training_mode: bool


CRITERIA: Mapping[str, Criterion] = {
    "ssfl": Criterion(snip, training_mode=False),
    "ssfl_aux": Criterion(snip_raw_logits, training_mode=True),
    "grasp": Criterion(grasp, training_mode=False),
    "synflow": Criterion(synflow, training_mode=False),
    "magnitude": Criterion(magnitude, training_mode=False),
}
