"""Flower's simulation as a contestant: FedAvg, one Ray actor per core, no evaluation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.gate import Gate, contestant_options
from benchmarks.peers.flower_client import app as client_app
from benchmarks.workload import accuracy_of, client_arrays, seeded, workload


class End(Exception):
    """No more rounds are requested."""


def main() -> None:
    """`--cores` actors with one core each."""
    options = contestant_options("Flower").parse_args()
    torch.set_num_threads(1)
    work = workload(options.workload)
    arrays, gate, module = client_arrays(work), Gate(*options.gate), seeded(work)

    class Gated(FedAvg):
        """Waits for the command before every round."""

        def configure_train(
            self, server_round: int, arrays_: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            def accuracy() -> float:
                module.load_state_dict(arrays_.to_torch_state_dict())
                return accuracy_of(module, arrays)

            if not gate.wait(accuracy):
                raise End
            return super().configure_train(server_round, arrays_, config, grid)

    app = ServerApp()

    @app.main()
    def server(grid: Grid, context: Context) -> None:
        share = work.cohort / work.clients
        strategy = Gated(fraction_train=share, fraction_evaluate=0.0, min_available_nodes=work.clients)
        initial = ArrayRecord(module.state_dict())
        config = ConfigRecord({"workload": work.name})
        with contextlib.suppress(End):
            strategy.start(grid, initial, num_rounds=10**6, train_config=config)

    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": options.cores},
    }
    run_simulation(app, client_app, num_supernodes=work.clients, backend_config=backend)


if __name__ == "__main__":
    main()
