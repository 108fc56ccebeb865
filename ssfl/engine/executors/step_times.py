"""Seconds of a training step on this machine in every form, and the choice of the fastest form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from ssfl.engine.compute.fused_layers import native_layers
from ssfl.engine.executors.trial import Kernels


class Form(NamedTuple):
    """Memory format of images and method of 3x3 convolutions, with the configuration's values."""

    memory_format: str
    convolutions: str

    def kernels(self, native: bool) -> Kernels:
        """The context in which a network computes in this form."""
        mixed, winograd = self.memory_format == "mixed", self.convolutions == "winograd"
        return partial(native_layers, wanted=native, mixed=mixed, winograd=winograd)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one client's step (forward, backward) on one thread; the fastest of a few."""

    contiguous: float
    channels_last: float | None
    """None if inputs are not images."""
    batched: float | None
    """Seconds per client and step in a block; None if a block cannot or need not be tried."""
    block: int
    threaded: float | None = None
    """Seconds of a step while `workers` threads each compute one; None if that cannot or need not be tried."""
    workers: int = 1
    mixed: float | None = None
    """Channels last except for small maps; None without kernels."""
    winograd: float | None = None
    """Channels last and 3x3 Winograd convolutions; None if the kernels support none."""
    batched_in_worker: float | None = None
    """`batched` in the block of a worker process, which has a part of the cohort; None if `batched` is."""
    plain: float | None = None
    """The faster memory format without kernels; None if the other times are also without kernels."""

    def kernels_pay(self, form: Form) -> bool:
        """Whether one client's step in this form is at least as fast with the kernels as with PyTorch's own layers."""
        return self.plain is None or self.alone(form) <= self.plain

    @property
    def best_alone(self) -> float:
        """The step time of the fastest form."""
        return min(self._alone().values())

    def alone(self, form: Form) -> float:
        """The step time of a form; for one that was not timed, the slowest time."""
        times = self._alone()
        return times.get(form, max(times.values()))

    def _alone(self) -> dict[Form, float]:
        times = {
            Form("contiguous", "direct"): self.contiguous,
            Form("channels_last", "direct"): self.channels_last,
            Form("mixed", "direct"): self.mixed,
            Form("channels_last", "winograd"): self.winograd,
        }
        return {form: seconds for form, seconds in times.items() if seconds is not None}

    def form(self, memory_format: str = "auto", convolutions: str = "auto") -> Form:
        """The fastest of the requested forms; a form must be 3 % faster than the simpler ones before it."""
        chosen, best = None, math.inf
        for form, seconds in self._alone().items():
            asked = memory_format in ("auto", form.memory_format) and convolutions in (
                "auto",
                form.convolutions,
            )
            if asked and (chosen is None or seconds < 0.97 * best):
                chosen, best = form, seconds
        if chosen is None:  # requested and not timed
            return Form("contiguous" if memory_format == "auto" else memory_format, "direct")
        return chosen
