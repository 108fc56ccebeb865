"""The table's rows and columns: every method, every executor, both runtimes inside the process, two networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ssfl.algorithms.base import Algorithm, Probe
from ssfl.algorithms.dispfl import DisPFL, Growth, MaskSearch
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec
from ssfl.core.saliency import SALIENCIES
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.threads import ThreadExecutor
from ssfl.engine.simulator import Absence, all_answer
from ssfl.engine.state.client_store import ClientStore
from ssfl.engine.state.progress import Progress
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

ROUNDS = 3
PER_ROUND = 3
DENSITY = 0.3
SIZES = (11, 9, 1, 5, 6)
"""Training examples per client: unequal, partial last batches of 8, one of them with a single example."""
FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, weight_decay=5e-4, clip_norm=10.0)
PLAIN_FIT = FitSpec(2, 8, CosineRestarts(0.1, 2), clip_norm=0.5)


def _ssfl(criterion: str = "ssfl", batches: int = 1, mask_round: int = 0, **settings: Any) -> SSFL:
    chosen = SALIENCIES[criterion]
    probe = Probe(chosen, batches, 8)
    return SSFL(FIT, PER_ROUND, Discovery(probe, DENSITY, **settings), mask_round)


def _dispfl(grow: Growth, **settings: Any) -> DisPFL:
    return DisPFL(FIT, DENSITY, MaskSearch(0.5, grow), neighbour_count=2, **settings)


ALGORITHMS: Mapping[str, Callable[[], Algorithm[Any]]] = {
    "fedavg": lambda: FedAvg(FIT, PER_ROUND),
    "fedavg_cosine": lambda: FedAvg(PLAIN_FIT, PER_ROUND),
    "fedavg_ft": lambda: FedAvg(FIT, PER_ROUND, fine_tune=PLAIN_FIT),
    "ssfl": _ssfl,
    "ssfl_three_batches": lambda: _ssfl(batches=3),
    "ssfl_aux": lambda: _ssfl("ssfl_aux"),
    "grasp": lambda: _ssfl("grasp"),
    "synflow": lambda: _ssfl("synflow"),
    "magnitude": lambda: _ssfl("magnitude"),
    "ssfl_warm_up": lambda: _ssfl(mask_round=2),
    "ssfl_factored": lambda: _ssfl(form="factored"),
    "ssfl_uniform": lambda: _ssfl(weighting="uniform"),
    "ssfl_fraction": lambda: _ssfl(client_fraction=0.5),
    "ssfl_ties_keep": lambda: _ssfl(ties="keep"),
    "ssfl_shuffled": lambda: _ssfl(shuffled=True),
    "ssfl_floor": lambda: _ssfl(floor_density=0.2),
    "random_global": lambda: SharedRandomMask(FIT, PER_ROUND, DENSITY),
    "random_layerwise": lambda: SharedRandomMask(FIT, PER_ROUND, DENSITY, "layerwise"),
    "random_clientwise": lambda: ClientwiseRandomMask(FIT, PER_ROUND, DENSITY),
    "dispfl": lambda: _dispfl("gradient"),
    "dispfl_random_growth": lambda: _dispfl("random", topology="ring"),
    "dispfl_full": lambda: _dispfl("gradient", topology="full", different_initial=False),
    "dispfl_fair": lambda: _dispfl("random", per_round=PER_ROUND),
    "sparsyfed": lambda: SparsyFed(FIT, PER_ROUND, DENSITY),
    "sparsyfed_dense_activations": lambda: SparsyFed(FIT, PER_ROUND, DENSITY, prune_activations=False),
    "local": lambda: LocalTraining(FIT),
    "local_fair": lambda: LocalTraining(PLAIN_FIT, PER_ROUND),
}
PERSONAL = tuple(name for name in ALGORITHMS if name.startswith(("dispfl", "local")))
"""Without a global model: what counts is each client's own."""
GLOBAL = tuple(name for name in ALGORITHMS if name not in PERSONAL)
SHARED_MASK = tuple(
    name for name in GLOBAL if not name.startswith(("fedavg", "random_clientwise", "sparsyfed"))
)
"""One mask for all, of a constant density."""
NETS = ("group", "batch")
EXECUTORS: Mapping[str, Callable[[ClientRunner], Executor]] = {
    "sequential": SequentialExecutor,
    "batched": lambda runner: BatchedExecutor(runner, block=2),
    "threads": lambda runner: ThreadExecutor(runner, 2),
}
"""A new executor is one entry here; the first is the reference."""
REFERENCE = next(iter(EXECUTORS))


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    rig: Rig
    models: Tensor
    """The global one [P], or the clients' own [K, P]."""
    bytes: tuple[int, int, int]
    """Down, up and between clients."""


def new_rig(
    name: str,
    net: str,
    executor: str | Executor = REFERENCE,
    wire: bool = False,
    seed: int = 7,
    absent: Absence = all_answer,
    lost: Absence = all_answer,
    store: ClientStore | None = None,
) -> Rig:
    """A run of the table, of fresh objects. `absent` clients never work; replies of `lost` ones do not arrive."""
    data, method, module = float_data(SIZES), ALGORITHMS[name](), tiny_net(net)
    if isinstance(executor, str):
        executor = EXECUTORS[executor](make_runner(data, module, method.tasks, seed))
    return make_rig(
        method, data, module, seed, wire, executor=executor, store=store, absent=absent, lost=lost
    )


def models_of(rig: Rig, progress: Progress) -> Tensor:
    """What a run has trained: the global model [P], or every client's own [K, P] as it remembers it."""
    weights = rig.algorithm.weights_to_evaluate(progress.state, rig.context)
    return kept_models(rig) if weights is None else weights


def kept_models(rig: Rig) -> Tensor:
    """Each client's own model [K, P]; the initial one for clients that were never asked."""
    states, (task,) = rig.states(), rig.algorithm.tasks.values()
    assert task.kept_model is not None
    rows = []
    for client in rig.context.clients:
        kept = task.kept_model(states[client]) if client in states else None
        rows.append(rig.theta if kept is None else kept)
    return torch.stack(rows)


def run_to_end(rig: Rig, rounds: int = ROUNDS) -> Tensor:
    """All rounds, from the beginning; what was trained."""
    return models_of(rig, rig.loop.run(rig.loop.start(rig.theta, rounds)))


@cache
def finished(name: str, net: str, executor: str = REFERENCE, wire: bool = False, seed: int = 7) -> Finished:
    """The same, run to its end once and kept."""
    rig = new_rig(name, net, executor, wire, seed)
    try:
        models = run_to_end(rig)
    finally:
        rig.executor.close()
    assert rig.loop.progress is not None
    ledger = rig.loop.progress.ledger
    return Finished(rig, models, (ledger.downlink_bytes, ledger.uplink_bytes, ledger.peer_bytes))
