"""Local training: each client equals a plain torch loop on its own data; no models are exchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssfl.algorithms.base import Clock
from ssfl.algorithms.local_training import LocalTraining
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import Payload
from ssfl.engine.client.batch_order import SeededOrder
from ssfl.engine.client.errors import ClientError
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.wire.message import encode
from tests.support.rigs import Rig, float_data, make_rig, make_runner, tiny_net

ROUNDS = 3
FIT = FitSpec(2, 8, ExponentialDecay(0.1, 0.9), weight_decay=1e-3)


def new_rig(per_round: int | None = None, wire: bool = False, block: int = 0) -> Rig:
    algorithm, data, module = LocalTraining(FIT, per_round), float_data(), tiny_net("batch")
    runner = make_runner(data, module, algorithm.tasks)
    executor = BatchedExecutor(runner, block) if block else None
    return make_rig(algorithm, data, module, wire=wire, executor=executor)


def finish(rig: Rig) -> dict[int, Tensor]:
    rig.loop.run(rig.loop.start(rig.theta, ROUNDS))
    return {c: s["theta"] for c, s in rig.states().items()}


def alone(client: int) -> Tensor:
    """The same training with torch.optim, without federation."""
    data, module = float_data(), tiny_net("batch").double()
    x, y = data.train[client]
    for round_ in range(1, ROUNDS + 1):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1 * 0.9**round_, weight_decay=1e-3)
        for epoch in range(2):
            for rows in torch.split(SeededOrder(7).epoch(client, round_, epoch, len(y)), 8):
                optimiser.zero_grad()
                cross_entropy(module(x[rows].double()), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return torch.cat([t.detach().flatten() for t in tensors])


def test_every_client_is_a_plain_loop_on_its_own_data() -> None:
    for client, theta in finish(new_rig()).items():
        torch.testing.assert_close(theta, alone(client), rtol=0, atol=1e-10)


def test_nothing_travels_but_the_initial_model() -> None:
    rig = new_rig()
    finish(rig)
    assert [e["downlink_bytes"] > 0 for e in rig.events] == [True, False, False]
    empty = len(encode(Payload({}, 0)))
    assert all(e["uplink_bytes"] == 5 * empty and "peer_bytes" not in e for e in rig.events)
    assert all(e["global_accuracy"] is None and e["clients_trained"] == 5 for e in rig.events)


def test_cohort_trains_only_itself() -> None:
    rig = new_rig(per_round=2)
    states = finish(rig)
    seen = {r.client for _, replies in rig.recorder.passed for r in replies}
    assert set(states) == seen
    assert all(len(replies) == 2 for _, replies in rig.recorder.passed)


def test_wire_and_batched_agree() -> None:
    plain = finish(new_rig())
    for client, theta in finish(new_rig(wire=True)).items():
        assert theta.equal(plain[client])
    for client, theta in finish(new_rig(block=3)).items():
        torch.testing.assert_close(theta, plain[client], rtol=0, atol=1e-10)


def test_resume_is_never_stopped(tmp_path: Path) -> None:
    whole = finish(new_rig(2))
    stopped = new_rig(2)
    progress = stopped.loop.start(stopped.theta, ROUNDS)
    Checkpoints(tmp_path).save(stopped.step(progress))
    resumed = new_rig(2)
    read = Checkpoints(tmp_path).latest(resumed.algorithm.records)
    assert read is not None
    resumed.recorder.restore(read[0].client_memories)
    resumed.loop.run(read[0])
    found = {c: s["theta"] for c, s in resumed.states().items()}
    assert found.keys() == whole.keys()
    assert all(found[c].equal(whole[c]) for c in whole)


def test_client_without_a_model_says_so() -> None:
    rig = new_rig()
    state = replace(rig.algorithm.initialize(rig.theta, rig.context), joined=tuple(rig.context.clients))
    plan = rig.plan(state, Clock(2, ROUNDS))
    with pytest.raises(ClientError, match="client 0 has no model: send the initial model first"):
        rig.exchanged(plan)
