"""A run in slices: stop by itself after so many seconds, in order, to be resumed in the next slice."""

from __future__ import annotations

import time
from collections.abc import Callable

from ssfl.engine.driver import Progress, Save


class SliceEnd(Exception):
    """No error: the time is over. `progress` is the exchange that has just been finished."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        super().__init__(f"checkpoint.stop_after_seconds={seconds:g} have passed")
        self.progress = progress


def ending(save: Save, seconds: float, now: Callable[[], float] = time.monotonic) -> Save:
    """`save`, which raises SliceEnd after the first exchange that ends `seconds` or more from now; 0: never.

    After the last round it does not: what is left then is quick, and a run that is over needs no resume.
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
