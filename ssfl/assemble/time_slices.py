"""A run in time slices: it stops cleanly after a configured time and is resumed in the next slice."""

from __future__ import annotations

import time
from collections.abc import Callable

from ssfl.engine.loop import Save
from ssfl.engine.state.progress import Progress


class SliceEnd(Exception):
    """Not an error: the time is over. `progress`: the state after the exchange that has just finished."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        super().__init__(f"checkpoint.stop_after_seconds={seconds:g} have passed")
        self.progress = progress


def ending(save: Save, seconds: float, now: Callable[[], float] = time.monotonic) -> Save:
    """`save`, extended to raise SliceEnd after the first exchange that ends `seconds` or more from now; 0: never.

    It does not raise after the last round, because the remaining work is short.
    """
    if not seconds:
        return save
    start = now()

    def save_or_end(progress: Progress) -> float:
        spent = save(progress)
        if now() - start >= seconds and progress.clock.round <= progress.clock.total:
            raise SliceEnd(progress, seconds)
        return spent

    return save_or_end
