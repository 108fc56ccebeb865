"""Saliencies: the importance of each weight on one minibatch, `score(net, theta [P], batch) -> [T]`.

A saliency that is a function of the loss's gradient declares it (`of_gradient`), so that an engine may compute the
gradient in its own way, for one client or for a block of K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ssfl.core.attention import PlainAttention
from ssfl.core.net import Batch, FlatNet, trained_gradient

OfGradient = Callable[[Tensor, Tensor], Tensor]
"""(gradient [..., T] of the mean cross-entropy, theta [..., T]) -> scores [..., T]; elementwise."""
OfNetwork = Callable[[FlatNet, Tensor, Batch], Tensor]
"""(network, theta [P], minibatch) -> scores [T]."""


@final
@dataclass(frozen=True)
class Saliency:
    """A saliency. Exactly one of `of_gradient` and `of_network` must be set; ValueError otherwise."""

    of_gradient: OfGradient | None = None
    of_network: OfNetwork | None = None
    training_mode: bool = False
    """Whether the network is in train mode while it is scored; otherwise in eval mode."""

    def __post_init__(self) -> None:
        if (self.of_gradient is None) == (self.of_network is None):
            raise ValueError("a saliency is a function of the gradient or of the network: give one of them")

    def score(self, net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
        """Scores [T] at theta [P]; the caller sets the module's mode."""
        if self.of_network is not None:
            return self.of_network(net, theta, batch)
        assert self.of_gradient is not None
        return self.of_gradient(trained_gradient(net, theta, batch), theta[: net.layout.trained_size])


def _gradient(gradient: Tensor, theta: Tensor) -> Tensor:
    return gradient


def _gradient_times_weight(gradient: Tensor, theta: Tensor) -> Tensor:
    return (gradient * theta).abs()


def _raw_logits(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    size = net.layout.trained_size
    leaf = theta[:size].detach().clone().requires_grad_()
    logits = net.logits(leaf, batch[0], net.statistics(theta))
    loss = -logits.gather(1, batch[1][:, None]).mean()
    (out,) = torch.autograd.grad(loss, leaf)
    return (out * theta[:size]).abs()


def _grasp(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    size = net.layout.trained_size
    leaf = theta[:size].detach().clone().requires_grad_()
    with PlainAttention():
        loss = net.loss(leaf, batch, net.statistics(theta))
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (hg,) = torch.autograd.grad((g * g.detach()).sum(), leaf)
    return theta[:size] * hg


def _synflow(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    size = net.layout.trained_size
    leaf = theta[:size].detach().abs().requires_grad_()
    ones = torch.ones_like(batch[0][:1])
    total = net.logits(leaf, ones, net.statistics(theta)).sum()
    (out,) = torch.autograd.grad(total, leaf)
    return (out * leaf).detach()


def _magnitude(net: FlatNet, theta: Tensor, batch: Batch) -> Tensor:
    return theta[: net.layout.trained_size].abs()


GRADIENT = Saliency(of_gradient=_gradient)
"""dL/dw, signed: the growth criterion of dynamic sparse training (RigL, Evci et al. 2020, section 3)."""
SNIP = Saliency(of_gradient=_gradient_times_weight)
"""|dL/dw * w| with mean cross-entropy (SNIP, Lee et al. 2019, eq. 6; SSFL's saliency).

First-order change of the loss when a weight is removed. Not normalised per client, as in the authors' code.
"""
SNIP_RAW_LOGITS = Saliency(of_network=_raw_logits, training_mode=True)
"""|dL/dw * w| with L the negative log-likelihood of the RAW logits: the `ssfl_aux` score of the authors' earlier code.

The loss lacks the log-softmax, so its gradient with respect to the logits is the constant -onehot / B. That code
takes the gradient of an all-ones mask variable c; |dL/dc| equals |dL/dw * w|.
"""
GRASP = Saliency(of_network=_grasp)
"""w * (H g), the largest are kept (GraSP, Wang et al. 2020, eq. 8, with the opposite sign)."""
SYNFLOW = Saliency(of_network=_synflow)
"""|w| * d(sum of outputs on an all-ones input)/d|w| (SynFlow, Tanaka et al. 2020, eq. 1); no data is read."""
MAGNITUDE = Saliency(of_network=_magnitude)
"""|w|: needs no data; at random initialisation it carries no information."""

SALIENCIES: Mapping[str, Saliency] = {
    "ssfl": SNIP,
    "ssfl_aux": SNIP_RAW_LOGITS,
    "grasp": GRASP,
    "synflow": SYNFLOW,
    "magnitude": MAGNITUDE,
}
"""`algorithm.params.method` -> saliency."""
