"""The table's rows and columns: every method, every executor, both runtimes inside the process, two networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ssfl.algorithms.base import Algorithm, Probe
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec
from ssfl.core.saliency import CRITERIA
from ssfl.engine.batched import BatchedExecutor
from ssfl.engine.executors import Executor, SequentialExecutor
from ssfl.engine.local import ClientRunner
from tests.engine.support import Rig, float_data, make_rig, make_runner, tiny_net

ROUNDS = 3
PER_ROUND = 3
DENSITY = 0.3
SIZES = (11, 9, 1, 5, 6)
"""Training examples per client: unequal, partial last batches of 8, one of them with a single example."""
FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.99), momentum=0.9, weight_decay=5e-4, clip_norm=10.0)
PLAIN_FIT = FitSpec(2, 8, CosineRestarts(0.1, 2), clip_norm=0.5)


def _ssfl(criterion: str = "ssfl", batches: int = 1, mask_round: int = 0, **settings: Any) -> SSFL:
    chosen = CRITERIA[criterion]
    probe = Probe(chosen.score, batches, 8, chosen.training_mode)
    return SSFL(FIT, PER_ROUND, Discovery(probe, DENSITY, **settings), mask_round)


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
    "ssfl_warm_up": lambda: _ssfl(mask_round=1),
    "ssfl_uniform": lambda: _ssfl(weighting="uniform"),
    "ssfl_fraction": lambda: _ssfl(client_fraction=0.5),
    "ssfl_ties_keep": lambda: _ssfl(ties="keep"),
    "ssfl_floor": lambda: _ssfl(floor_density=0.2),
    "random_global": lambda: SharedRandomMask(FIT, PER_ROUND, DENSITY),
    "random_layerwise": lambda: SharedRandomMask(FIT, PER_ROUND, DENSITY, "layerwise"),
    "random_clientwise": lambda: ClientwiseRandomMask(FIT, PER_ROUND, DENSITY),
}
SHARED_MASK = tuple(name for name in ALGORITHMS if not name.startswith(("fedavg", "random_clientwise")))
NETS = ("group", "batch")
EXECUTORS: Mapping[str, Callable[[ClientRunner], Executor]] = {
    "sequential": SequentialExecutor,
    "batched": lambda runner: BatchedExecutor(runner, block=2),
}
"""A new executor is one entry here; the first is the reference."""
REFERENCE = next(iter(EXECUTORS))


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    rig: Rig
    weights: Tensor
    downlink_bytes: int
    uplink_bytes: int


def new_rig(name: str, net: str, executor: str = REFERENCE, wire: bool = False, seed: int = 7) -> Rig:
    """A run of the table, set up from fresh objects."""
    data, method, module = float_data(SIZES), ALGORITHMS[name](), tiny_net(net)
    runner = make_runner(data, module, method.tasks, seed)
    return make_rig(method, data, module, seed, wire, executor=EXECUTORS[executor](runner))


@cache
def finished(name: str, net: str, executor: str = REFERENCE, wire: bool = False, seed: int = 7) -> Finished:
    """The same, run to its end once and kept."""
    rig = new_rig(name, net, executor, wire, seed)
    try:
        weights = rig.run(ROUNDS)
    finally:
        rig.executor.close()
    assert rig.loop.progress is not None
    ledger = rig.loop.progress.ledger
    return Finished(rig, weights, ledger.downlink_bytes, ledger.uplink_bytes)
