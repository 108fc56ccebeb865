"""FedProx (Li et al. 2020) as a custom method: FedAvg with one more term in the client's gradient, and one setting.

`python examples/fedprox.py`, or from this folder:
ssfl run preset=digits algorithm.name=fedprox:METHOD algorithm.params.mu=0.1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import THETA, ClientContext, ClientState, Work
from ssfl.algorithms.dense import dense_training, receive_dense
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.method import Method, Recipe
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import Payload
from ssfl.data.arrays import Arrays
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.engine.simulate import simulate
from ssfl.settings import setting


@dataclass(frozen=True)
class Settings:
    """Settings on the command line: algorithm.params.mu."""

    mu: float = setting(0.01, "weight of the proximal term", at_least=0)


def receive(inbox: Sequence[Payload], state: ClientState, context: ClientContext) -> tuple[Work, ClientState]:
    """The server's model, and a second view of it that training does not change."""
    work, state = receive_dense(inbox, state, context)
    return {**work, "anchor": work[THETA][: context.layout.trained_size]}, state


def pull(mu: float, gradient: Tensor, theta: Tensor, work: Work) -> Tensor:
    """g + mu (theta - anchor): the gradient of the loss plus mu / 2 |theta - anchor|^2."""
    return gradient.add_(theta - work["anchor"], alpha=mu)


def fedprox(fit: FitSpec, per_round: int, mu: float) -> FedAvg:
    """FedAvg with the proximal term in the client's gradient."""
    client = replace(dense_training(fit), receive=receive, transform_gradient=partial(pull, mu))
    return FedAvg(fit, per_round, client=client)


def build(settings: Settings, recipe: Recipe) -> FedAvg:
    """The algorithm, from the configuration."""
    return fedprox(recipe.fit, recipe.per_round, settings.mu)


METHOD = Method(build, lambda settings: "FedProx", Settings)


def main() -> None:
    """Run without a configuration. Each client has two classes, so that local models diverge."""
    torch.manual_seed(0)
    x = torch.randn(600, 20)
    y = x[:, :4].argmax(1)
    data = Arrays("four", 4, ("a", "b", "c", "d"), x[:480], y[:480], x[480:], y[480:])
    clients = build_federation(data, PartitionSpec("patho", clients=8, alpha=2), default_preprocess(data))
    network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    fit = FitSpec(epochs=4, batch_size=16, schedule=ExponentialDecay(0.2, 0.99))
    result = simulate(fedprox(fit, per_round=4, mu=0.1), network, clients, rounds=15, seed=1)
    print(f"accuracy {result.events[-1]['global_accuracy']:.3f}")


if __name__ == "__main__":
    main()
