"""A custom network on custom arrays, SSFL at density 0.2: `python examples/own_model_and_data.py`."""

import torch
from torch import nn

from ssfl.algorithms.base import Probe
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP
from ssfl.data.arrays import Arrays
from ssfl.data.federation import build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.engine.simulate import simulate

torch.manual_seed(0)
x = torch.randn(600, 20)  # your data: float32 [N, F] (or uint8 images [N, C, H, W]) and int64 labels [N]
y = x[:, :4].argmax(1)
names = ("a", "b", "c", "d")
data = Arrays("mine", len(names), names, x[:480], y[:480], x[480:], y[480:])
clients = build_federation(data, PartitionSpec("iid", clients=8), default_preprocess(data))
network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))  # your network

fit = FitSpec(epochs=2, batch_size=16, schedule=ExponentialDecay(lr=0.2, decay=0.99), clip_norm=10.0)
method = SSFL(fit, per_round=4, discovery=Discovery(Probe(SNIP), density=0.2))
result = simulate(method, network, clients, rounds=10, seed=1)
for event in result.events:  # one per exchange; docs/metrics.md lists the fields
    print(event["phase"], event["round"], f"{event['uplink_bytes']:,} bytes up")
print(f"accuracy {result.events[-1]['global_accuracy']:.3f}")
