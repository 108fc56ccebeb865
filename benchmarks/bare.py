"""A round without a framework, as a user would write it: a loop, or two long-lived processes and a shared vector.

Without tuning: default malloc, NCHW, torch.optim.SGD.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.gate import Gate, contestant_options
from benchmarks.workload import (
    BATCH_SIZE,
    LR,
    ClientArrays,
    Workload,
    accuracy_of,
    client_arrays,
    cohort_of,
    seeded,
    workload,
)


def train_client(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One local epoch over the client's examples [n, ...], in place."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for rows in torch.split(torch.randperm(len(y)), BATCH_SIZE):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class PlainLoop:
    """One process, one client after the other."""

    def __init__(self, work: Workload) -> None:
        self.work, self.arrays = work, client_arrays(work)
        self.model = seeded(work)
        self.theta = parameters_to_vector(self.model.parameters()).detach().clone()
        self._cohorts = cohorts(work)

    def round(self) -> None:
        """Train the cohort, average by examples."""
        total, weight = torch.zeros_like(self.theta), 0
        for client in next(self._cohorts):
            vector_to_parameters(self.theta.clone(), self.model.parameters())
            x, y = self.arrays.x[client], self.arrays.y[client]
            train_client(self.model, x, y)
            total += len(y) * parameters_to_vector(self.model.parameters()).detach()
            weight += len(y)
        self.theta = total / weight

    def accuracy(self) -> float:
        """Accuracy of the global model on the test set."""
        vector_to_parameters(self.theta.clone(), self.model.parameters())
        return accuracy_of(self.model, self.arrays)


class Processes:
    """Workers forked once, one thread each; the model and each worker's sum are in shared memory."""

    def __init__(self, work: Workload, workers: int) -> None:
        self.work, self.arrays = work, client_arrays(work)
        self.model = seeded(work)
        self.theta = _shared(parameters_to_vector(self.model.parameters()).detach())
        self.sums = _shared(torch.zeros(workers, len(self.theta)))
        self._cohorts = cohorts(work)
        fork = multiprocessing.get_context("fork")
        self._pipes: list[Connection[Any, Any]] = []
        for number in range(workers):
            ours, theirs = fork.Pipe()
            arguments = (theirs, self.model, self.arrays, self.theta, self.sums[number])
            fork.Process(target=_worker, args=arguments, daemon=True).start()
            self._pipes.append(ours)

    def round(self) -> None:
        """Every worker trains its share of the cohort and writes a weighted sum."""
        cohort = next(self._cohorts)
        for number, pipe in enumerate(self._pipes):
            pipe.send(cohort[number :: len(self._pipes)])
        weight = sum(pipe.recv() for pipe in self._pipes)
        self.theta.copy_(self.sums.sum(0) / weight)

    def accuracy(self) -> float:
        """Accuracy of the global model on the test set."""
        vector_to_parameters(self.theta.clone(), self.model.parameters())
        return accuracy_of(self.model, self.arrays)


def _shared(tensor: Tensor) -> Tensor:
    return tensor.clone().share_memory_()  # type: ignore[no-untyped-call]


def _worker(
    pipe: Connection[Any, Any], model: nn.Module, arrays: ClientArrays, theta: Tensor, total: Tensor
) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            clients = pipe.recv()
        except EOFError:
            return
        total.zero_()
        weight = 0
        for client in clients:
            vector_to_parameters(theta.clone(), model.parameters())
            x, y = arrays.x[client], arrays.y[client]
            train_client(model, x, y)
            total += len(y) * parameters_to_vector(model.parameters()).detach()
            weight += len(y)
        pipe.send(weight)


def cohorts(work: Workload) -> Iterator[list[int]]:
    """The clients of each round."""
    round_ = 0
    while True:
        round_ += 1
        yield cohort_of(work, round_)


def main() -> None:
    """`--cores 1`: the plain loop; more: this number of processes."""
    options = contestant_options("plain PyTorch").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    work = workload(options.workload)
    contestant = PlainLoop(work) if options.cores == 1 else Processes(work, options.cores)
    Gate(*options.gate).serve(contestant.round, contestant.accuracy)


if __name__ == "__main__":
    main()
