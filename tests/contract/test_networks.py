"""Every kind of network in every executor, against a plain PyTorch loop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssfl.algorithms.fedavg import FedAvg
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.rng import stream
from ssfl.core.tensor_roles import fixed_state, state_under
from ssfl.engine.client.batch_order import SeededOrder
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor, check_sendable
from ssfl.errors import UserError
from tests.contract.table import ALGORITHMS, EXECUTORS, run_to_end
from tests.support.networks import CLASSES, NETWORKS
from tests.support.rigs import FloatData, float_data, make_rig, make_runner

SIZES = (11, 9, 1, 5, 6)
"""Training examples per client: the second's last minibatch of 8 has one example, the third has one in all."""
BATCH = 8
SEED = 7
ROUNDS = 2
FIT = FitSpec(2, BATCH, ExponentialDecay(0.1, 1.0), momentum=0.9, weight_decay=1e-2)
TWO_IN_TRAINING = ("SharedNorm", "Counter", "UntrackedNorm")
"""Kinds with BatchNorm over rows: a lone last example joins the minibatch before it."""
REFUSED: Mapping[str, tuple[str, ...]] = {
    "batched": (
        *TWO_IN_TRAINING,
        "FunctionalDropout",
        "Branch",
        "Skipped",
        "Recurrent",
        "Careful",
        "SpectralNorm",
        "Attention",
    ),
    "threads": ("FunctionalDropout",),
    "processes": ("WeightNorm", "SpectralNorm"),
}
"""Kinds that an executor refuses in one line; all others give the plain loop's weights."""


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return NETWORKS[name]()


def data() -> FloatData:
    return float_data(SIZES, CLASSES)


# ── the plain loop ───────────────────────────────────────────────────────────────────────────────────────────────
def minibatches(name: str, client: int, round: int, epoch: int) -> list[Tensor]:
    """Positions of each minibatch, in the order of the seed."""
    order = SeededOrder(SEED).epoch(client, round, epoch, SIZES[client])
    pieces = list(torch.split(order, BATCH))
    if name in TWO_IN_TRAINING and len(pieces[-1]) == 1:
        lone = pieces.pop()
        pieces[-1:] = [torch.cat([pieces[-1], lone])] if pieces else []
    return pieces


def trained(name: str, start: Mapping[str, Tensor], client: int, round: int) -> dict[str, Tensor]:
    """One client's state_dict after its local epochs."""
    model = network(name).double()
    model.load_state_dict(start)
    model.train()
    x, y = data().train[client]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(weights, lr=0.1, momentum=FIT.momentum, weight_decay=FIT.weight_decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(SEED, "layers", client, round).initial_seed())
        for epoch in range(FIT.epochs):
            for rows in minibatches(name, client, round, epoch):
                optimiser.zero_grad()
                torch.autograd.backward(cross_entropy(model(x[rows].double()), y[rows]))
                optimiser.step()
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


@cache
def plain_fedavg(name: str) -> dict[str, Tensor]:
    """The global state_dict after all rounds; what is no finite float stays, but for a counter that counts."""
    model = network(name).double()
    counts = [key for key in model.state_dict() if key.endswith("num_batches_tracked") and name == "Counter"]
    state = {k: v.double() if k in counts else v.clone() for k, v in model.state_dict().items()}
    shares = [n / sum(SIZES) for n in SIZES]
    for round in range(1, ROUNDS + 1):
        sent = {k: v.round().long() if k in counts else v for k, v in state.items()}
        found = [trained(name, sent, client, round) for client in range(len(SIZES))]
        for key, old in state.items():
            if old.is_floating_point() and bool(old.isfinite().all()):
                state[key] = sum(s * f[key].double() for s, f in zip(shares, found, strict=True))  # type: ignore[assignment]
    return {k: v.round().long() if k in counts else v for k, v in state.items()}


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def our_fedavg(name: str, executor: str) -> dict[str, Tensor]:
    method, module = FedAvg(FIT, len(SIZES)), network(name)
    runner = make_runner(data(), module, method.tasks, SEED)
    constants = fixed_state(module)
    chosen: Executor
    if executor == "processes":
        check_sendable(module)
        chosen = ProcessExecutor(runner, 1)
    else:
        chosen = EXECUTORS[executor](runner)
    try:
        rig = make_rig(method, data(), module, SEED, executor=chosen)
        theta = rig.run(ROUNDS)
    finally:
        chosen.close()
    return state_under(module, {**constants, **chosen.layout.named(theta)})


def check(name: str, executor: str) -> None:
    if name in REFUSED.get(executor, ()):
        with pytest.raises(UserError, match=f"executor={executor}"):
            our_fedavg(name, executor)
        return
    ours, expected = our_fedavg(name, executor), plain_fedavg(name)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if key.endswith("num_batches_tracked") and name != "Counter":
            continue  # nothing reads it
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_kind_of_network_gives_the_plain_loops_weights(name: str, executor: str) -> None:
    check(name, executor)


@pytest.mark.parametrize("name", ["Constants", "TiedParameter", "Counter", "WeightNorm"])
def test_worker_processes_do_too(name: str) -> None:
    check(name, "processes")


@pytest.mark.parametrize("method", ["ssfl_aux", "sparsyfed", "dispfl"])
@pytest.mark.parametrize("name", ["Assigned", "SharedNorm", "WeightNorm", "Constants"])
def test_methods_with_masks_and_layers_of_their_own_train_them(name: str, method: str) -> None:
    """Blocks of clients against one after the other, where blocks are possible."""
    ends = []
    for executor in ("sequential", "batched"):
        made, module = ALGORITHMS[method](), network(name)
        chosen = make_runner(data(), module, made.tasks, SEED)
        if name in REFUSED.get(executor, ()):
            continue
        rig = make_rig(made, data(), module, SEED, executor=EXECUTORS[executor](chosen))
        ends.append(run_to_end(rig, ROUNDS))
    moved = (ends[0] - rig.theta).abs().max()
    assert bool(ends[0].isfinite().all())
    assert float(moved) > 1e-3
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-9)
