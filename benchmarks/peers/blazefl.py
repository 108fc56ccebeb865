"""BlazeFL as a contestant: its FedAvg with a pool of threads (one torch thread each), or serially.

Its process pool is not measured: it is created in every round and several times slower.
"""

from __future__ import annotations

from typing import Any

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgThreadPoolClientTrainer,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gate import Gate, contestant_options
from benchmarks.workload import (
    BATCH_SIZE,
    LR,
    SEED,
    ClientArrays,
    Workload,
    accuracy_of,
    client_arrays,
    seeded,
    workload,
)


class Selector:
    """BlazeFL's interface for models."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def select_model(self, model_name: str) -> nn.Module:
        return seeded(self.work)


class Clients:
    """BlazeFL's interface for data: one loader per client."""

    def __init__(self, arrays: ClientArrays) -> None:
        self._sets = [TensorDataset(x, y) for x, y in zip(arrays.x, arrays.y)]

    def get_dataloader(
        self, type_: str, cid: int, batch_size: int, generator: torch.Generator | None = None
    ) -> DataLoader:
        return DataLoader(self._sets[cid], batch_size=batch_size, shuffle=True, generator=generator)


def main() -> None:
    """`--mode threads`: a pool of `--cores` threads; `--mode serial`: torch's own threads."""
    parser = contestant_options("BlazeFL")
    parser.add_argument("--mode", choices=["threads", "serial"], default="threads")
    options = parser.parse_args()
    work = workload(options.workload)
    arrays = client_arrays(work)
    pooled = options.mode == "threads"
    torch.set_num_threads(1 if pooled else options.cores)
    common: dict[str, Any] = {
        "model_selector": Selector(work),
        "model_name": work.name,
        "dataset": Clients(arrays),
    }
    common |= {"device": "cpu", "num_clients": work.clients, "batch_size": BATCH_SIZE, "seed": SEED}
    handler = FedAvgBaseServerHandler(global_round=10**9, sample_ratio=work.cohort / work.clients, **common)
    local = common | {"epochs": 1, "lr": LR}
    if pooled:
        trainer = FedAvgThreadPoolClientTrainer(num_parallels=options.cores, **local)
    else:
        trainer = FedAvgBaseClientTrainer(**local)

    def round_() -> None:
        trainer.local_process(handler.downlink_package(), handler.sample_clients())
        for package in trainer.uplink_package():
            handler.load(package)

    Gate(*options.gate).serve(round_, lambda: accuracy_of(handler.model, arrays))


if __name__ == "__main__":
    main()
