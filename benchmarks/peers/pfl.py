"""pfl-research as a contestant: federated averaging on its simulated backend, one process."""

from __future__ import annotations

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gate import Gate, contestant_options
from benchmarks.workload import BATCH_SIZE, LR, SEED, accuracy_of, client_arrays, seeded, workload


class WithLoss(nn.Module):
    """A network with the two methods that pfl requires."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        self.train(not eval)
        return cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, object]:
        return {}


def main() -> None:
    """One process, `--cores` threads."""
    options = contestant_options("pfl").parse_args()
    torch.set_num_threads(options.cores)
    np.random.seed(SEED)  # pfl uses numpy's global generator
    work = workload(options.workload)
    arrays = client_arrays(work)
    module, gate = WithLoss(seeded(work)), Gate(*options.gate)

    def dataset(user: int) -> PyTorchTensorDataset:
        return PyTorchTensorDataset((arrays.x[user], arrays.y[user]), user_id=user)

    class Gated(TrainingProcessCallback):
        """Waits for the command before every round."""

        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: object, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            return not gate.wait(lambda: accuracy_of(module, arrays)), Metrics()

    data = FederatedDataset(dataset, get_user_sampler("random", list(range(work.clients))))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(data, data, [WeightByDatapoints()])
    rounds = NNAlgorithmParams(
        10**9, evaluation_frequency=10**9, train_cohort_size=work.cohort, val_cohort_size=None
    )
    local = NNTrainHyperParams(BATCH_SIZE, local_num_epochs=1, local_learning_rate=LR)
    if gate.wait(lambda: accuracy_of(module, arrays)):
        FederatedAveraging().run(rounds, backend, model, local, NNEvalHyperParams(None), [Gated()])


if __name__ == "__main__":
    main()
