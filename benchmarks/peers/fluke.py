"""fluke as a contestant: its FedAVG with loaders prepared in advance, one process, evaluation off."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from benchmarks.gate import Gate, contestant_options
from benchmarks.peers.torchvision_stub import allow_import
from benchmarks.workload import BATCH_SIZE, CLASSES, LR, accuracy_of, client_arrays, seeded, workload

_TORCHVISION = allow_import()

from fluke import DDict, FlukeENV  # noqa: E402
from fluke.algorithms.fedavg import FedAVG  # noqa: E402
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader  # noqa: E402
from fluke.evaluation import ClassificationEval  # noqa: E402


class End(Exception):
    """No more rounds are requested."""


def main() -> None:
    """One process, `--cores` threads."""
    options = contestant_options("fluke").parse_args()
    torch.set_num_threads(options.cores)
    work = workload(options.workload)
    arrays, gate = client_arrays(work), Gate(*options.gate)
    environment = FlukeENV()
    environment.set_seed(1)
    environment.set_device("cpu")
    environment.set_evaluator(ClassificationEval(eval_every=1, n_classes=CLASSES))
    environment.set_eval_cfg(server=False, locals=False, pre_fit=False, post_fit=False)
    loaders = [
        FastDataLoader(x, y, num_labels=CLASSES, batch_size=BATCH_SIZE, shuffle=True)
        for x, y in zip(arrays.x, arrays.y)
    ]
    container = DummyDataContainer(loaders, [None] * work.clients, None, CLASSES)
    splitter = DataSplitter(container, distribution="iid")
    hyper = DDict(
        model=seeded(work),
        client=DDict(
            batch_size=BATCH_SIZE,
            local_epochs=1,
            loss=nn.CrossEntropyLoss,
            optimizer=DDict(name="SGD", lr=LR),
            scheduler=DDict(name="StepLR", step_size=1, gamma=1),
        ),
        server=DDict(weighted=True),
    )
    federation = FedAVG(work.clients, splitter, hyper)

    class Gated:
        """Waits for the command before every round; fluke calls observers' methods by name."""

        def start_round(self, round: int, global_model: nn.Module) -> None:
            if not gate.wait(lambda: accuracy_of(federation.server.model, arrays)):
                raise End

        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **named: None

    federation.attach(Gated())
    with contextlib.suppress(End):
        federation.run(10**6, work.cohort / work.clients, finalize=False)


if __name__ == "__main__":
    main()
