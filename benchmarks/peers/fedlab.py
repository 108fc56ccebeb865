"""FedLab as a contestant: its synchronous server and its serial trainer, in one process, as in its tutorial."""

from __future__ import annotations

import logging

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gate import Gate, contestant_options
from benchmarks.peers.torchvision_stub import allow_import
from benchmarks.workload import BATCH_SIZE, LR, ClientArrays, accuracy_of, client_arrays, seeded, workload

_TORCHVISION = allow_import()

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.contrib.algorithm.basic_server import SyncServerHandler  # noqa: E402


class Clients:
    """FedLab's interface for data: one loader per client."""

    def __init__(self, arrays: ClientArrays) -> None:
        self._sets = [TensorDataset(x, y) for x, y in zip(arrays.x, arrays.y)]

    def get_dataloader(self, client: int, batch_size: int) -> DataLoader:
        return DataLoader(self._sets[client], batch_size=batch_size, shuffle=True)


def main() -> None:
    """One process, `--cores` threads."""
    options = contestant_options("FedLab").parse_args()
    torch.set_num_threads(options.cores)
    logging.disable(logging.INFO)
    work = workload(options.workload)
    arrays = client_arrays(work)
    handler = SyncServerHandler(seeded(work), global_round=10**9, sample_ratio=work.cohort / work.clients)
    trainer = SGDSerialClientTrainer(seeded(work), work.clients)
    trainer.setup_dataset(Clients(arrays))
    trainer.setup_optim(1, BATCH_SIZE, LR)
    handler.num_clients = work.clients

    def round_() -> None:
        sampled = handler.sample_clients()
        trainer.local_process(handler.downlink_package, sampled)
        for package in trainer.uplink_package:
            handler.load(package)

    Gate(*options.gate).serve(round_, lambda: accuracy_of(handler.model, arrays))


if __name__ == "__main__":
    main()
