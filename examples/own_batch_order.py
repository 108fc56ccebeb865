"""A custom batch order: in every epoch, each client sees its examples from the first to the last."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.data.arrays import Arrays
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.engine.simulate import simulate


@dataclass(frozen=True)
class InOrder:
    """Positions within a client's own examples; consecutive blocks of them are the minibatches."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        return torch.arange(examples)

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        return torch.arange(examples)[:batch_size]


torch.manual_seed(0)
x = torch.randn(400, 6)
y = (x[:, 0] > 0).long()
data = Arrays("sign", 2, ("minus", "plus"), x[:300], y[:300], x[300:], y[300:])
clients = build_federation(data, PartitionSpec("iid", clients=5), default_preprocess(data))
method = FedAvg(FitSpec(epochs=1, batch_size=16, schedule=ExponentialDecay(0.5, 1.0)), per_round=5)
result = simulate(method, nn.Linear(6, 2), clients, rounds=5, seed=1, order=InOrder())
print(f"accuracy {result.events[-1]['global_accuracy']:.3f}")
