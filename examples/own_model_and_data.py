"""Your own network on your own arrays, SSFL at density 0.2: `python examples/own_model_and_data.py`."""

import torch
from torch import nn

from ssfl.algorithms.base import Probe, ServerContext
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import snip
from ssfl.data.arrays import Arrays
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.engine.driver import Federation, TestSet
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.simulator import Simulator

torch.manual_seed(0)
x = torch.randn(600, 20)  # your data: float32 [N, F] (or uint8 images [N, C, H, W]) and int64 labels [N]
y = x[:, :4].argmax(1)
names = ("a", "b", "c", "d")
data = Arrays("mine", len(names), names, x[:480], y[:480], x[480:], y[480:])
clients = build_federation(data, PartitionSpec("iid", clients=8), default_preprocess(data))
network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))  # your network

fit = FitSpec(epochs=2, batch_size=16, schedule=ExponentialDecay(lr=0.2, decay=0.99), clip_norm=10.0)
method = SSFL(fit, per_round=4, discovery=Discovery(Probe(snip), density=0.2))
runner = ClientRunner(network, clients, method.tasks, seed=1)
executor = SequentialExecutor(runner)
context = ServerContext(runner.layout, {k: clients.examples(k) for k in range(8)}, seed=1)
test_set = TestSet(data.test_y, data.num_classes, clients.test_parts)
loop = Federation(method, context, Simulator(executor), executor, test_set, print, lambda progress: 0.0)
end = loop.run(loop.start(runner.layout.flatten(network), rounds=10))
print(
    f"accuracy {runner.evaluate(end.state.theta, client=None).accuracy:.3f}, {end.ledger.uplink_bytes:,} bytes up"
)
