"""Runs that are resumed from each of their checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from ssfl.engine.state.checkpoint import Checkpoints
from ssfl.engine.state.progress import Progress
from tests.contract.reading import timeless
from tests.contract.table import models_of
from tests.support.rigs import Event, Rig


def kept_progress(rig: Rig, folder: Path) -> list[Progress]:
    """What a run's checkpoints give back, one of every exchange; filled while it runs."""
    kept: list[Progress] = []
    store = Checkpoints(folder)

    def save(progress: Progress) -> float:
        store.save(progress)
        loaded = store.latest(rig.algorithm.records)
        assert loaded is not None
        kept.append(loaded[0])
        return 0.0

    rig.loop.save = save
    return kept


def resumed_from_each(
    kept: list[Progress], fresh: Callable[[], Rig], models: Tensor, events: list[Event]
) -> Iterator[tuple[Rig, Progress]]:
    """Runs that went on from each checkpoint, and their ends: with these models, and what is left of these events."""
    whole = timeless(events)
    for number, progress in enumerate(kept):
        rig = fresh()
        rig.loop.exchange.restore(progress.client_memories)
        end = rig.loop.run(progress)
        assert models_of(rig, end).equal(models), f"after exchange {number}"
        assert timeless(rig.events) == whole[len(whole) - len(rig.events) :]
        yield rig, end
