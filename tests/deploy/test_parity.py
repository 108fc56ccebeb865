"""Every row of the contract table: the same bits over the deployment's messages as in the simulator, each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ssfl.assemble.communication import wire_of
from ssfl.config import load_config
from ssfl.core.layout import Layout
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.simulator import Simulator
from ssfl.wire.stack import WireStack
from tests.contract.table import ALGORITHMS, PERSONAL, SIZES, new_rig
from tests.deploy.fake_fleet import FLOAT64, make_bench, weights_by_exchange
from tests.support.rigs import float_data, tiny_net


@pytest.mark.parametrize("net", ["group", "batch"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_deployment_gives_the_simulators_bits(name: str, net: str) -> None:
    simulated, deployed = new_rig(name, net), make_bench(name, net)
    expected, found = weights_by_exchange(simulated), weights_by_exchange(deployed)
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.equal(theirs), f"after exchange {number}"
    assert simulated.loop.progress is not None
    assert deployed.loop.progress is not None
    here, there = deployed.loop.progress.ledger, simulated.loop.progress.ledger
    assert (here.downlink_bytes, here.uplink_bytes, here.peer_bytes) == (
        there.downlink_bytes,
        there.uplink_bytes,
        there.peer_bytes,
    )


@pytest.mark.parametrize("name", PERSONAL)
def test_clients_own_models_are_those_of_the_simulator(name: str) -> None:
    simulated, deployed = new_rig(name, "group"), make_bench(name)
    weights_by_exchange(simulated)
    weights_by_exchange(deployed)
    states = simulated.states()
    (task,) = simulated.algorithm.tasks.values()
    assert task.kept_model is not None
    for client in range(len(SIZES)):
        session = deployed.site(client).trainer.session
        if client not in states:
            continue
        assert session is not None
        ours = task.kept_model(session.states.before(1 << 40).state)
        theirs = task.kept_model(states[client])
        assert ours is not None
        assert theirs is not None
        assert ours.equal(theirs)


PROFILES: Mapping[str, Callable[[Layout], WireStack]] = {
    "small": lambda layout: wire_of(load_config(["communication.profile=small"]), layout),
    "balanced": lambda layout: wire_of(load_config(["communication.profile=balanced"]), layout),
    "differences": lambda layout: wire_of(
        load_config(["communication.downlink=lossless", "communication.downlink_versions=2"]), layout
    ),
    "lossless": lambda layout: wire_of(
        load_config(["communication.uplink=lossless", "communication.downlink=lossless"]), layout
    ),
    "small_versions": lambda layout: wire_of(
        load_config(["communication.profile=small", "communication.downlink_versions=3"]), layout
    ),
    "feedback": lambda layout: wire_of(
        load_config(["communication.profile=small", "communication.error_feedback=true"]), layout
    ),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "dispfl", "sparsyfed", "random_clientwise"])
def test_codecs_give_the_simulators_bits(name: str, profile: str) -> None:
    rig = new_rig(name, "group")
    wire = PROFILES[profile](rig.context.layout)
    data, method, module = float_data(SIZES), ALGORITHMS[name](), tiny_net("group")
    runner = ClientRunner(module, data, method.tasks, 7, None, FLOAT64, wire=wire)
    rig.loop.exchange = CodedExchange(Simulator(SequentialExecutor(runner)), wire)
    expected = weights_by_exchange(rig)
    bench = make_bench(name, wire=wire)
    found = weights_by_exchange(bench)
    assert len(found) == len(expected)
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))
    assert rig.loop.progress is not None
    assert bench.loop.progress is not None
    here, there = bench.loop.progress.ledger, rig.loop.progress.ledger
    assert (here.downlink_bytes, here.uplink_bytes, here.peer_bytes) == (
        there.downlink_bytes,
        there.uplink_bytes,
        there.peer_bytes,
    )
