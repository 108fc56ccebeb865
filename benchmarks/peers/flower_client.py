"""Flower's client, in a separate module so that Flower's worker processes can import it."""

from __future__ import annotations

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from benchmarks.workload import BATCH_SIZE, LR, ClientArrays, client_arrays, seeded, workload

app = ClientApp()


@cache
def data(name: str) -> ClientArrays:
    """Once a worker process."""
    torch.set_num_threads(1)
    return client_arrays(workload(name))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch."""
    name = str(message.content["config"]["workload"])
    arrays, model = data(name), seeded(workload(name))
    client = int(context.node_config["partition-id"])
    arrays_in = message.content["arrays"]
    assert isinstance(arrays_in, ArrayRecord)
    model.load_state_dict(arrays_in.to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    x, y = arrays.x[client], arrays.y[client]
    for rows in torch.split(torch.randperm(len(y)), BATCH_SIZE):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x[rows]), y[rows]))
        optimizer.step()
    records = RecordDict()
    records["arrays"] = ArrayRecord(model.state_dict())
    records["metrics"] = MetricRecord({"num-examples": len(y)})
    return Message(content=records, reply_to=message)
