"""A batch order of your own: every client sees its examples from the first to the last, in every epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import ServerContext
from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.data.arrays import Arrays
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.engine.driver import Federation, TestSet
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.simulator import Simulator


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
runner = ClientRunner(nn.Linear(6, 2), clients, method.tasks, seed=1, order=InOrder())
executor = SequentialExecutor(runner)
context = ServerContext(runner.layout, {k: clients.examples(k) for k in range(5)}, seed=1)
test_set = TestSet(data.test_y, 2, clients.test_parts)
loop = Federation(method, context, Simulator(executor), executor, test_set, lambda event: None, lambda p: 0.0)
end = loop.run(loop.start(runner.layout.flatten(runner.module), rounds=5))
print(f"accuracy {runner.evaluate(end.state.theta, client=None).accuracy:.3f}")
