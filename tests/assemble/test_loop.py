"""The loop of one rank: a run's parts give what the one-call simulation gives; every rank goes on from the first's."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ssfl.algorithms.base import ClientState
from ssfl.assemble.build import Parts
from ssfl.assemble.loop import first_progress, loop_of, undisturbed
from ssfl.engine.checkpoint import Checkpoints
from ssfl.engine.client_store import ClientStore, whole
from ssfl.engine.driver import Federation, Progress
from ssfl.engine.executors import SequentialExecutor
from ssfl.engine.local import ClientRunner
from ssfl.engine.ranks import Alone, Link, RankedExecutor
from ssfl.engine.simple import simulate
from ssfl.engine.simulator import Simulator
from tests.assemble.support import parts
from tests.engine.test_ranks import MAKING, Board, ThreadLink, on_ranks


def loop_with(
    run: Parts, store: ClientStore | None = None, link: Link | None = None, events: list[Any] | None = None
) -> Federation:
    runner = ClientRunner(run.module, run.federation, run.algorithm.tasks, run.config.experiment.seed)
    inner = SequentialExecutor(runner)
    executor = inner if link is None else RankedExecutor(inner, runner, link)
    told: list[Any] = [] if events is None else events
    return loop_of(run, Simulator(executor, store=store), executor, told.append, lambda progress: 0.0)


def equal(a: Mapping[int, ClientState], b: Mapping[int, ClientState]) -> bool:
    same = [a[c].keys() == b[c].keys() and all(t.equal(b[c][n]) for n, t in a[c].items()) for c in b]
    return a.keys() == b.keys() and all(same)


# ── one rank ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_run_ends_like_the_simulation_in_one_call() -> None:
    run = parts("training.frequency_of_the_test=2")
    events: list[Mapping[str, Any]] = []
    loop = loop_with(run, events=events)
    ended = loop.run(first_progress(loop, run, None, Alone()))
    found = run.algorithm.weights_to_evaluate(ended.state, run.context)
    again = parts()
    wanted = simulate(again.algorithm, again.module, again.federation, 2, again.config.experiment.seed).theta
    assert isinstance(found, Tensor)
    assert wanted is not None
    assert found.equal(wanted)
    tested = [e.get("global_accuracy") is not None for e in events if e["event"] == "round"]
    assert tested == [False, True]  # every second round


def test_what_was_saved_is_gone_on_from() -> None:
    run = parts()
    loop = loop_with(run)
    fresh = first_progress(loop, run, None, Alone())
    assert (fresh.clock.round, fresh.clock.total) == (1, 2)
    saved = replace(fresh, clock=replace(fresh.clock, round=2))
    assert first_progress(loop, run, saved, Alone()) is saved


# ── several ranks ────────────────────────────────────────────────────────────────────────────────────────────────
def one_exchange(run: Parts, folder: Path) -> Progress:
    """DisPFL's first round in one process whose clients' memories all lie on disk, back from its checkpoint."""
    store = ClientStore(folder / "clients", 0)
    loop = loop_with(run, store)
    start = first_progress(loop, run, None, Alone())
    plan = run.algorithm.configure_round(start.state, start.clock, run.context)
    assert plan is not None
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(loop.step(start, plan))
    read = checkpoints.latest(run.algorithm.records)
    assert read is not None
    return read[0]


def test_several_ranks_go_on_from_a_checkpoint_of_one_with_its_files(tmp_path: Path) -> None:
    """As `_run_to_end` does it: rank 0 reads the clients' files, the others get all from it and see no folder."""
    straight = parts("algorithm=dispfl")
    loop = loop_with(straight)
    wanted = loop.run(first_progress(loop, straight, None, Alone())).client_states
    one_exchange(parts("algorithm=dispfl"), tmp_path)

    def work(link: Link) -> Mapping[int, ClientState]:
        with MAKING:
            run = parts("algorithm=dispfl")
            loop = loop_with(run, link=link)
        saved = None
        if link.rank == 0:
            read = Checkpoints(tmp_path / "checkpoints").latest(run.algorithm.records)
            assert read is not None
            store = ClientStore(tmp_path / "clients")
            store.restore(read[0].client_states)
            saved = replace(read[0], client_states=whole(store.snapshot()))
        progress = first_progress(loop, run, saved, link)
        loop.exchange.restore(progress.client_states)
        return loop.run(progress).client_states

    for states in on_ranks(2, work):
        assert not isinstance(states, Exception), states
        assert equal(states, wanted)


# ── last words ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_torchruns_end_waits_for_the_last_words_only() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with undisturbed(ThreadLink(0, Board(2))):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        with undisturbed(Alone()):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        with pytest.raises(OSError, match="disk"), undisturbed(ThreadLink(0, Board(2))):
            raise OSError("disk full")
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
