"""The loop of one rank equals the one-call simulation; all ranks continue from the first rank's progress."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ssfl.assemble.build import RunSetup
from ssfl.assemble.loop import first_progress, loop_of, undisturbed
from ssfl.engine.client.memory import ClientMemories
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.executors.distributed.executor import RankedExecutor
from ssfl.engine.executors.distributed.link import Alone, Link
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.loop import RoundLoop
from ssfl.engine.simulate import simulate
from ssfl.engine.simulator import Simulator
from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.client_store import ClientStore, whole
from ssfl.engine.state.progress import Progress
from tests.support.assembled import run_setup
from tests.support.memories import same_memory
from tests.support.ranks import MAKING, on_ranks


def loop_with(
    run: RunSetup, store: ClientStore | None = None, link: Link | None = None, events: list[Any] | None = None
) -> RoundLoop:
    seed = run.config.experiment.seed
    runner = ClientRunner(run.module, run.federation, run.algorithm.tasks, seed, wire=run.wire)
    inner = SequentialExecutor(runner)
    executor = inner if link is None else RankedExecutor(inner, runner, link)
    recorded: list[Any] = [] if events is None else events
    return loop_of(run, Simulator(executor, store=store), executor, recorded.append, lambda progress: 0.0)


def equal(a: ClientMemories, b: ClientMemories) -> bool:
    return a.keys() == b.keys() and all(same_memory(a[c].load(), b[c].load()) for c in b)


# ── one rank ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_run_ends_like_the_simulation_in_one_call() -> None:
    run = run_setup("training.frequency_of_the_test=2")
    events: list[Mapping[str, Any]] = []
    loop = loop_with(run, events=events)
    ended = loop.run(first_progress(loop, run, None, Alone()))
    found = run.algorithm.weights_to_evaluate(ended.state, run.context)
    again = run_setup()
    wanted = simulate(again.algorithm, again.module, again.federation, 2, again.config.experiment.seed).theta
    assert isinstance(found, Tensor)
    assert wanted is not None
    assert found.equal(wanted)
    tested = [e.get("global_accuracy") is not None for e in events if e["event"] == "round"]
    assert tested == [False, True]  # every second round


def test_what_was_saved_is_gone_on_from() -> None:
    run = run_setup()
    loop = loop_with(run)
    fresh = first_progress(loop, run, None, Alone())
    assert (fresh.clock.round, fresh.clock.total) == (1, 2)
    saved = replace(fresh, clock=replace(fresh.clock, round=2))
    assert first_progress(loop, run, saved, Alone()) is saved


# ── several ranks ────────────────────────────────────────────────────────────────────────────────────────────────
def one_exchange(run: RunSetup, folder: Path) -> Progress:
    """DisPFL's first round in one process with all client states on disk, loaded from its checkpoint."""
    store = ClientStore(folder / "clients", 0)
    loop = loop_with(run, store)
    start = first_progress(loop, run, None, Alone())
    plan = run.algorithm.configure_round(start.state, start.clock, run.context)
    assert plan is not None
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(loop.step(start, plan)[0])
    read = checkpoints.latest(run.algorithm.records)
    assert read is not None
    return read[0]


def test_several_ranks_go_on_from_a_checkpoint_of_one_with_its_files(tmp_path: Path) -> None:
    """As in `_run_to_end`: rank 0 reads the clients' files; the others receive everything and access no folder."""
    straight = run_setup("algorithm=dispfl")
    loop = loop_with(straight)
    wanted = loop.run(first_progress(loop, straight, None, Alone())).client_memories
    one_exchange(run_setup("algorithm=dispfl"), tmp_path)

    def work(link: Link) -> ClientMemories:
        with MAKING:
            run = run_setup("algorithm=dispfl")
            loop = loop_with(run, link=link)
        saved = None
        if link.rank == 0:
            read = Checkpoints(tmp_path / "checkpoints").latest(run.algorithm.records)
            assert read is not None
            store = ClientStore(tmp_path / "clients")
            store.restore(read[0].client_memories)
            saved = replace(read[0], client_memories=whole(store.snapshot()))
        progress = first_progress(loop, run, saved, link)
        loop.exchange.restore(progress.client_memories)
        return loop.run(progress).client_memories

    for states in on_ranks(2, work):
        assert not isinstance(states, Exception), states
        assert equal(states, wanted)


# ── final errors ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_signals_wait_for_the_last_checkpoint_only() -> None:
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers]
    try:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == []
        with pytest.raises(OSError, match="disk"), undisturbed():
            raise OSError("disk full")
        for number in numbers:
            signal.raise_signal(number)
        assert heard == list(numbers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
