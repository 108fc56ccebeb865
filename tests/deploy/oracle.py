"""What a deployed run must equal: a simulation with the same words from which the same replies are missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssfl.assemble.build import setup_of
from ssfl.assemble.execution import resolve_engine, runner_of
from ssfl.config import load_config
from ssfl.engine.central_test import CentralTest
from ssfl.engine.coded_exchange import CodedExchange
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.loop import Exchange, RoundLoop
from ssfl.engine.simulator import Simulator
from tests.support.rigs import Lossy

BITS = ("engine.memory_format=contiguous", "engine.convolutions=direct", "engine.executor=sequential")
"""One way of computing on both sides."""


Missing = Mapping[tuple[str, int], Collection[int]]
"""(phase, round) -> clients whose replies do not count."""


def without(inner: Exchange, missing: Missing) -> Lossy:
    """A simulation's exchange from which these replies are taken away."""
    return Lossy(inner, lambda plan: missing.get((plan.phase, plan.clock.round), ()))


def simulated_model(words: Sequence[str], sites: int, missing: Missing) -> Tensor:
    """The global model of a simulation with the same words from which the same replies are missing."""
    config = load_config([*words, f"training.client_num_in_total={sites}"])
    setup = setup_of(config)
    setup = replace(setup, config=resolve_engine(config, setup))
    executor = SequentialExecutor(runner_of(setup))
    loop = RoundLoop(
        setup.algorithm,
        setup.context,
        CodedExchange(without(Simulator(executor), missing), setup.wire),
        CentralTest(executor, setup.federation),
        emit=lambda event: None,
        save=lambda progress: 0.0,
        test_every=1000,
    )
    progress = loop.run(loop.start(setup.theta, config.training.comm_round))
    theta = setup.algorithm.weights_to_evaluate(progress.state, setup.context)
    assert theta is not None
    views = setup.layout.views(theta)
    return torch.cat([views[name].reshape(-1) for name in sorted(views)])


def missing_of(events: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[int]]:
    """(phase, round as the plan counts) -> clients, from the run's own record."""
    found = {}
    for event in events:
        if event["event"] in ("round", "phase") and event["missing_clients"]:
            round_ = event["round"] + (event["event"] == "phase")
            found[event["phase"], round_] = list(event["missing_clients"])
    return found


def check_ledger(events: Sequence[Mapping[str, Any]], rounds: int) -> None:
    """Every round aggregated once, in order; totals are the sums of the increments."""
    assert [e["round"] for e in events if e["event"] == "round"] == list(range(1, rounds + 1))
    last = events[-1]
    assert last["event"] == "run_finished"
    for way in ("downlink", "uplink"):
        assert last[f"total_{way}_bytes"] == sum(e.get(f"{way}_bytes", 0) for e in events[:-1])
